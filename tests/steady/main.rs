//! What the service does again and again, it does without the allocator; and when there is nothing to do, it does nothing.

mod counting;
mod idle;
mod steps;
