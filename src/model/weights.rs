//! The structure of a model: which parts a layer has, and the order in which they are made and stored.

use crate::int8::matrix::Matrix;

/// All weights of a model, or something else for each part: `M` for a matrix, `N` for a norm. A blueprint holds a
/// description of each part, a loaded model the part itself.
pub struct Weights<M = Matrix, N = Vec<f32>> {
    /// The layers in order.
    pub layers: Vec<Layer<M, N>>,
    /// The last norm.
    pub final_norm: N,
    /// The embedding, which is also the head if both are tied: `[vocab][hidden]`.
    pub embedding: M,
    /// The head, if it is not tied to the embedding.
    pub head: Option<M>,
}

/// One layer: `x += mixer(norm(x))`, then `x += feed_forward(norm(x))`.
pub struct Layer<M = Matrix, N = Vec<f32>> {
    /// Norm before the mixer: `[hidden]`.
    pub mixer_norm: N,
    /// The part in which a token depends on earlier tokens.
    pub mixer: Mixer<M>,
    /// Norm before the feed-forward layer: `[hidden]`.
    pub feed_forward_norm: N,
    /// The part that processes each token independently.
    pub feed_forward: FeedForward<M>,
}

/// The part in which a token depends on earlier tokens.
pub enum Mixer<M = Matrix> {
    /// Grouped-query attention.
    Attention(Attention<M>),
}

/// The matrices of attention.
pub struct Attention<M = Matrix> {
    /// Queries, keys and values stacked: `[(heads + 2·kv_heads)·head_dim][hidden]`.
    pub qkv: M,
    /// `[hidden][heads·head_dim]`.
    pub output: M,
}

/// The part that processes each token independently.
pub enum FeedForward<M = Matrix> {
    /// One SwiGLU for all tokens.
    Dense(SwiGlu<M>),
}

/// The matrices of `down · (silu(gate · x) · (up · x))`.
pub struct SwiGlu<M = Matrix> {
    /// Gate and up, 32 columns of each per panel: `[2·intermediate][hidden]`.
    pub gate_up: M,
    /// `[hidden][intermediate]`.
    pub down: M,
}

/// Turns each part of a model into something else, such as a description into the loaded part.
pub trait Source<M, N> {
    /// The result for a matrix.
    type Matrix;
    /// The result for a norm.
    type Norm;
    /// The error if a part cannot be made.
    type Error;

    /// Makes a matrix.
    ///
    /// # Errors
    /// If it cannot be made.
    fn matrix(&mut self, part: M) -> Result<Self::Matrix, Self::Error>;

    /// Makes a norm.
    ///
    /// # Errors
    /// If it cannot be made.
    fn norm(&mut self, part: N) -> Result<Self::Norm, Self::Error>;
}

impl<M, N> Weights<M, N> {
    /// Calls `source` for every part, in the order in which parts are made and stored.
    ///
    /// # Errors
    /// The first error of `source`.
    pub fn make<'a, S: Source<&'a M, &'a N>>(
        &'a self,
        source: &mut S,
    ) -> Result<Weights<S::Matrix, S::Norm>, S::Error> {
        let layers = self.layers.iter().map(|layer| layer.make(source));
        Ok(Weights {
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: source.norm(&self.final_norm)?,
            // The vocabulary comes last: the input of the head is known only after all layers have run.
            embedding: source.matrix(&self.embedding)?,
            head: match &self.head {
                Some(head) => Some(source.matrix(head)?),
                None => None,
            },
        })
    }

    /// Every matrix, in the order in which they are made and stored.
    pub fn matrices(&self) -> Vec<&M> {
        let mut parts = Parts::default();
        let Ok(_) = self.make(&mut parts);
        parts.matrices
    }

    /// Every norm, in the order in which they are made and stored.
    pub fn norms(&self) -> Vec<&N> {
        let mut parts = Parts::default();
        let Ok(_) = self.make(&mut parts);
        parts.norms
    }
}

impl<M, N> Layer<M, N> {
    fn make<'a, S: Source<&'a M, &'a N>>(
        &'a self,
        source: &mut S,
    ) -> Result<Layer<S::Matrix, S::Norm>, S::Error> {
        Ok(Layer {
            mixer_norm: source.norm(&self.mixer_norm)?,
            mixer: match &self.mixer {
                Mixer::Attention(attention) => Mixer::Attention(Attention {
                    qkv: source.matrix(&attention.qkv)?,
                    output: source.matrix(&attention.output)?,
                }),
            },
            feed_forward_norm: source.norm(&self.feed_forward_norm)?,
            feed_forward: match &self.feed_forward {
                FeedForward::Dense(dense) => FeedForward::Dense(SwiGlu {
                    gate_up: source.matrix(&dense.gate_up)?,
                    down: source.matrix(&dense.down)?,
                }),
            },
        })
    }
}

/// Collects parts in order.
struct Parts<'a, M, N> {
    matrices: Vec<&'a M>,
    norms: Vec<&'a N>,
}

impl<M, N> Default for Parts<'_, M, N> {
    fn default() -> Self {
        Self {
            matrices: Vec::new(),
            norms: Vec::new(),
        }
    }
}

impl<'a, M, N> Source<&'a M, &'a N> for Parts<'a, M, N> {
    type Matrix = ();
    type Norm = ();
    type Error = std::convert::Infallible;

    fn matrix(&mut self, part: &'a M) -> Result<(), Self::Error> {
        self.matrices.push(part);
        Ok(())
    }

    fn norm(&mut self, part: &'a N) -> Result<(), Self::Error> {
        self.norms.push(part);
        Ok(())
    }
}
