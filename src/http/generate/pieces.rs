//! The pieces of all answers of a request, merged in the order in which they arrive.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, SelectAll};

use super::answer::{Answer, Piece};
use crate::http::error_body::ApiError;
use crate::http::observe::Record;
use crate::http::receipt::Receipt;

/// The pieces of all answers, as their tokens arrive.
pub struct Pieces {
    answers: SelectAll<BoxStream<'static, Result<Piece, ApiError>>>,
    cut: Pin<Box<dyn Future<Output = ApiError> + Send>>,
    record: Arc<Record>,
    /// Whether the response has a receipt.
    has_receipt: bool,
}

impl Pieces {
    /// The pieces of `answers`, which are generated concurrently. `cut` resolves when they must end, to the
    /// reason. `has_receipt` says whether the response has a receipt.
    pub fn new(
        answers: Vec<Answer>,
        cut: impl Future<Output = ApiError> + Send + 'static,
        record: Arc<Record>,
        has_receipt: bool,
    ) -> Self {
        let answers = answers.into_iter().enumerate().map(|(index, answer)| {
            stream::unfold(Some(answer), move |answer| async move {
                Some(answer?.step(index).await)
            })
            .boxed()
        });
        Self {
            answers: stream::select_all(answers),
            cut: Box::pin(cut),
            record,
            has_receipt,
        }
    }

    /// The next piece of any answer; `None` when all are complete. Cancel-safe: dropping the future loses no piece.
    pub async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        let piece = tokio::select! {
            biased;
            piece = self.answers.next() => piece?,
            error = &mut self.cut => Err(error),
        };
        match &piece {
            Ok(piece) => {
                self.record.add_completion_tokens(piece.generated());
                if let Some(finish) = &piece.finish {
                    self.record.count_answer(finish.reason());
                }
            }
            Err(error) => self.record.set_failed(error),
        }
        Some(piece)
    }

    /// Holds `bytes` of the memory budget for what is kept of a stream.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub fn hold(&self, bytes: usize) -> Result<(), ApiError> {
        let held = self.record.hold_more(bytes);
        held.inspect_err(|error| self.record.set_failed(error))
    }

    /// The receipt of the request when all answers are complete, if the response has one.
    pub fn receipt(&self) -> Option<Receipt> {
        self.has_receipt.then(|| self.record.receipt("ok"))
    }

    /// All answers, each joined from its pieces.
    ///
    /// # Errors
    /// When a generation fails, is cut off, or has no memory left. Incomplete answers are not returned.
    pub async fn collect(&mut self) -> Result<Vec<Piece>, ApiError> {
        let mut answers = Vec::new();
        answers.resize_with(self.answers.len(), Piece::default);
        let mut bytes = 0;
        while let Some(piece) = self.next().await {
            let piece = piece?;
            bytes += piece.bytes();
            self.record.hold_more(bytes)?;
            let answer: &mut Piece = &mut answers[piece.index];
            answer.index = piece.index;
            answer.append(piece);
        }
        Ok(answers)
    }
}
