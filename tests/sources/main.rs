//! Where models come from, tested on real files, on files that lie, and on a hub on loopback.

mod folders;
mod tokenizers;
