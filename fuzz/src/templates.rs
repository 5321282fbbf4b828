//! Chat templates, which come with a model, and conversations, which come from clients.

use jiff::Timestamp;
use microgranite::http::chat::request::ChatRequest;
use microgranite::http::limits::Limits;
use microgranite::text::chat::{ChatTemplate, Conversation, Message, Role};

use crate::files::tokenizer_of_the_fixture;

/// The stack that the server gives the threads that render templates, and as much again for the sanitizer.
const STACK: usize = 128 << 20;

fn with_stack(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, work);
        let outcome = thread.expect("a thread").join();
        assert!(outcome.is_ok(), "a panic");
    });
}

/// Any text as a template, on a small conversation.
pub fn any_template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else {
        return;
    };
    with_stack(|| {
        let tokenizer = tokenizer_of_the_fixture();
        let Ok(template) = ChatTemplate::new(source, tokenizer, Some(0), Some(0)) else {
            return;
        };
        let messages = [Role::System, Role::User, Role::Assistant]
            .map(|role| Message::new(role, "Hello, <|end_of_text|> you"));
        let conversation = Conversation {
            messages: messages.into(),
            ..Conversation::default()
        };
        if let Ok(prompt) = template.encode(tokenizer, &conversation, Timestamp::UNIX_EPOCH, 4096) {
            assert!(prompt.ids.len() <= 4096 * 2);
        }
    });
}

/// Any conversation with a template that uses tools.
pub fn any_conversation(body: &[u8]) {
    const TEMPLATE: &str = include_str!("../../tests/clients/chatml-tools.jinja");
    with_stack(|| {
        let tokenizer = tokenizer_of_the_fixture();
        let template = ChatTemplate::new(TEMPLATE, tokenizer, None, Some(0)).expect("a template");
        let Ok(mut request) = ChatRequest::parse(body, &Limits::default()) else {
            return;
        };
        let _refused = request.settle();
        let _refused = template.encode(
            tokenizer,
            &request.conversation,
            Timestamp::UNIX_EPOCH,
            4096,
        );
    });
}
