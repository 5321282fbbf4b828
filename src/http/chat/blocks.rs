//! Answers as a sequence of blocks, for APIs whose responses are such sequences: the thought, texts, and one block for
//! each call.

use super::turn::{Added, Turn};
use crate::http::generate::answer::Piece;

/// What a block is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The thought.
    Thought,
    /// Text of the answer.
    Text,
    /// A call of the tool with this name. The block's text has the arguments.
    Call(String),
}

/// A block of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What it is.
    pub kind: Kind,
    /// Its text so far.
    pub text: String,
}

/// A change to the sequence.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// A new, empty block begins.
    Open(Kind),
    /// The last block gets more text.
    Add(String),
    /// The last block is complete.
    Close,
}

/// The sequence while the answer is generated. Only the last block can be open.
#[derive(Debug, Default)]
pub struct Blocks {
    open: Option<Kind>,
}

impl Blocks {
    /// The changes that a piece makes. Its end closes the last block.
    pub fn push(&mut self, turn: &mut Turn, piece: &Piece) -> Vec<Change> {
        let mut changes = Vec::new();
        for added in turn.push(piece) {
            let (kind, text) = match added {
                Added::Thought(text) => (Kind::Thought, text),
                Added::Text(text) => (Kind::Text, text),
                Added::Call { name, .. } => {
                    self.close(&mut changes);
                    self.open(Kind::Call(name), &mut changes);
                    continue;
                }
                Added::Arguments { text, .. } => {
                    changes.push(Change::Add(text));
                    continue;
                }
            };
            if self.open.as_ref() != Some(&kind) {
                self.close(&mut changes);
                self.open(kind, &mut changes);
            }
            changes.push(Change::Add(text));
        }
        if piece.finish.is_some() {
            self.close(&mut changes);
        }
        changes
    }

    fn open(&mut self, kind: Kind, changes: &mut Vec<Change>) {
        self.open = Some(kind.clone());
        changes.push(Change::Open(kind));
    }

    fn close(&mut self, changes: &mut Vec<Change>) {
        if self.open.take().is_some() {
            changes.push(Change::Close);
        }
    }
}

/// The blocks of a complete answer. `turn` must be new.
pub fn of(turn: &mut Turn, answer: &Piece) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for change in Blocks::default().push(turn, answer) {
        match (change, blocks.last_mut()) {
            (Change::Open(kind), _) => blocks.push(Block {
                kind,
                text: String::new(),
            }),
            (Change::Add(text), Some(last)) => last.text += &text,
            (Change::Add(_), None) | (Change::Close, _) => {}
        }
    }
    blocks
}
