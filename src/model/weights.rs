//! The structure of a model: which parts a layer has, and in which order they are made and stored.

use crate::int8::matrix::Matrix;

/// All weights of a model, or something else for each of them: `M` for a matrix, `N` for a norm. A blueprint has a
/// description of each part, a loaded model the part itself.
pub struct Weights<M = Matrix, N = Vec<f32>> {
    /// The blocks in order.
    pub layers: Vec<Layer<M, N>>,
    /// The last norm.
    pub final_norm: N,
    /// The embedding, which is also the head when tied: `[vocab][hidden]`.
    pub embedding: M,
    /// The head, when it is a matrix of its own.
    pub head: Option<M>,
}

/// One block: `x += mixer(norm(x))`, then `x += feed_forward(norm(x))`.
pub struct Layer<M = Matrix, N = Vec<f32>> {
    /// Norm before the mixer: `[hidden]`.
    pub mixer_norm: N,
    /// What lets a token see the others.
    pub mixer: Mixer<M>,
    /// Norm before the feed-forward layer: `[hidden]`.
    pub feed_forward_norm: N,
    /// What every token passes by itself.
    pub feed_forward: FeedForward<M>,
}

/// What lets a token see the others.
pub enum Mixer<M = Matrix> {
    /// Grouped-query attention.
    Attention(Attention<M>),
}

/// The matrices of an attention.
pub struct Attention<M = Matrix> {
    /// Queries, keys and values stacked: `[(heads + 2·kv_heads)·head_dim][hidden]`.
    pub qkv: M,
    /// `[hidden][heads·head_dim]`.
    pub output: M,
}

/// What every token passes by itself.
pub enum FeedForward<M = Matrix> {
    /// One SwiGLU for all tokens.
    Dense(SwiGlu<M>),
}

/// The matrices of `down · (silu(gate · x) · (up · x))`.
pub struct SwiGlu<M = Matrix> {
    /// Gate and up, 32 columns of each to a panel: `[2·intermediate][hidden]`.
    pub gate_up: M,
    /// `[hidden][intermediate]`.
    pub down: M,
}

/// Makes the parts of a model from others.
pub trait Source<M, N> {
    /// What a matrix becomes.
    type Matrix;
    /// What a norm becomes.
    type Norm;
    /// What keeps a part from being made.
    type Error;

    /// Makes a matrix.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    fn matrix(&mut self, part: M) -> Result<Self::Matrix, Self::Error>;

    /// Makes a norm.
    ///
    /// # Errors
    /// Whatever keeps it from being made.
    fn norm(&mut self, part: N) -> Result<Self::Norm, Self::Error>;
}

impl<M, N> Weights<M, N> {
    /// Has `source` make something of every part, in the order in which parts are made and stored.
    ///
    /// # Errors
    /// The first one of `source`.
    pub fn make<'a, S: Source<&'a M, &'a N>>(
        &'a self,
        source: &mut S,
    ) -> Result<Weights<S::Matrix, S::Norm>, S::Error> {
        let layers = self.layers.iter().map(|layer| layer.make(source));
        Ok(Weights {
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: source.norm(&self.final_norm)?,
            // The vocabulary comes last: what the head multiplies is known when all blocks have been run.
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

/// Collects parts as they come.
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
