//! The structure of a model: which parts a layer has, and the order in which they are made and stored.

use crate::int8::matrix::Matrix;

/// All weights of a model, or something else for each part: `M` for a matrix, `V` for a vector of floats. A blueprint
/// holds a description of each part, a loaded model the part itself.
pub struct Weights<M = Matrix, V = Vec<f32>> {
    /// The layers in order.
    pub layers: Vec<Layer<M, V>>,
    /// The last norm.
    pub final_norm: V,
    /// The embedding, which is also the head if both are tied: `[vocab][hidden]`.
    pub embedding: M,
    /// The head, if it is not tied to the embedding.
    pub head: Option<M>,
}

/// One layer: `x += mixer(norm(x))`, then `x += feed_forward(norm(x))`.
pub struct Layer<M = Matrix, V = Vec<f32>> {
    /// Norm before the mixer: `[hidden]`.
    pub mixer_norm: V,
    /// The part in which a token depends on earlier tokens.
    pub mixer: Mixer<M, V>,
    /// Norm before the feed-forward layer: `[hidden]`.
    pub feed_forward_norm: V,
    /// The part that processes each token independently.
    pub feed_forward: FeedForward<M, V>,
}

/// The part in which a token depends on earlier tokens.
pub enum Mixer<M = Matrix, V = Vec<f32>> {
    /// Grouped-query attention.
    Attention(Attention<M>),
    /// A recurrence with a state of fixed size.
    Mamba(Mamba<M, V>),
}

/// The matrices of attention.
pub struct Attention<M = Matrix> {
    /// Queries, keys and values stacked: `[(heads + 2·kv_heads)·head_dim][hidden]`.
    pub qkv: M,
    /// `[hidden][heads·head_dim]`.
    pub output: M,
}

/// The parts of a Mamba-2 mixer. With `inner` channels of all heads and `state` values for each channel, `convolved` is
/// `inner + 2 · state`.
pub struct Mamba<M = Matrix, V = Vec<f32>> {
    /// Gates, channels, inputs and outputs of the state, and time steps stacked: `[inner + convolved + heads][hidden]`.
    pub input: M,
    /// The taps of the convolution, the newest row's last: `[convolved/64][4][64]`.
    pub taps: V,
    /// `[convolved]`.
    pub convolution_bias: V,
    /// The decay rate of each head, negative: `[heads]`.
    pub rate: V,
    /// The factor with which a channel bypasses the state: `[heads]`.
    pub skip: V,
    /// Added to the time steps: `[heads]`.
    pub step_bias: V,
    /// Norm of the gated outputs: `[inner]`.
    pub norm: V,
    /// `[hidden][inner]`.
    pub output: M,
}

/// The part that processes each token independently.
pub enum FeedForward<M = Matrix, V = Vec<f32>> {
    /// One SwiGLU for all tokens.
    Dense(SwiGlu<M>),
    /// A choice of SwiGLUs for each token.
    Experts(Experts<M, V>),
}

/// The matrices of `down · (silu(gate · x) · (up · x))`.
pub struct SwiGlu<M = Matrix> {
    /// Gate and up, 32 columns of each per panel: `[2·intermediate][hidden]`.
    pub gate_up: M,
    /// `[hidden][intermediate]`.
    pub down: M,
}

/// A mixture of experts: each token takes the few with its largest router outputs.
pub struct Experts<M = Matrix, V = Vec<f32>> {
    /// The layer that every token takes, if there is one.
    pub shared: Option<SwiGlu<M>>,
    /// `[experts/16][hidden][16]`, the last block padded with zeros.
    pub router: V,
    /// The experts' matrices, one expert after the other: gate and up `[experts · 2 · width][hidden]`, down
    /// `[experts · hidden][width]`.
    pub experts: SwiGlu<M>,
}

/// Turns each part of a model into something else, such as a description into the loaded part.
pub trait Source<M, V> {
    /// The result for a matrix.
    type Matrix;
    /// The result for a vector.
    type Vector;
    /// The error if a part cannot be made.
    type Error;

    /// Makes a matrix.
    ///
    /// # Errors
    /// If it cannot be made.
    fn matrix(&mut self, part: M) -> Result<Self::Matrix, Self::Error>;

    /// Makes a vector.
    ///
    /// # Errors
    /// If it cannot be made.
    fn vector(&mut self, part: V) -> Result<Self::Vector, Self::Error>;
}

impl<M, V> Weights<M, V> {
    /// Calls `source` for every part, in the order in which parts are made and stored.
    ///
    /// # Errors
    /// The first error of `source`.
    pub fn make<'a, S: Source<&'a M, &'a V>>(
        &'a self,
        source: &mut S,
    ) -> Result<Weights<S::Matrix, S::Vector>, S::Error> {
        let layers = self.layers.iter().map(|layer| layer.make(source));
        Ok(Weights {
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: source.vector(&self.final_norm)?,
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

    /// Every vector, in the order in which they are made and stored.
    pub fn vectors(&self) -> Vec<&V> {
        let mut parts = Parts::default();
        let Ok(_) = self.make(&mut parts);
        parts.vectors
    }
}

impl<M, V> Layer<M, V> {
    fn make<'a, S: Source<&'a M, &'a V>>(
        &'a self,
        source: &mut S,
    ) -> Result<Layer<S::Matrix, S::Vector>, S::Error> {
        Ok(Layer {
            mixer_norm: source.vector(&self.mixer_norm)?,
            mixer: match &self.mixer {
                Mixer::Attention(attention) => Mixer::Attention(Attention {
                    qkv: source.matrix(&attention.qkv)?,
                    output: source.matrix(&attention.output)?,
                }),
                Mixer::Mamba(mamba) => Mixer::Mamba(mamba.make(source)?),
            },
            feed_forward_norm: source.vector(&self.feed_forward_norm)?,
            feed_forward: match &self.feed_forward {
                FeedForward::Dense(dense) => FeedForward::Dense(dense.make(source)?),
                FeedForward::Experts(experts) => FeedForward::Experts(Experts {
                    shared: match &experts.shared {
                        Some(shared) => Some(shared.make(source)?),
                        None => None,
                    },
                    router: source.vector(&experts.router)?,
                    experts: experts.experts.make(source)?,
                }),
            },
        })
    }
}

impl<M, V> Mamba<M, V> {
    fn make<'a, S: Source<&'a M, &'a V>>(
        &'a self,
        source: &mut S,
    ) -> Result<Mamba<S::Matrix, S::Vector>, S::Error> {
        Ok(Mamba {
            input: source.matrix(&self.input)?,
            taps: source.vector(&self.taps)?,
            convolution_bias: source.vector(&self.convolution_bias)?,
            rate: source.vector(&self.rate)?,
            skip: source.vector(&self.skip)?,
            step_bias: source.vector(&self.step_bias)?,
            norm: source.vector(&self.norm)?,
            output: source.matrix(&self.output)?,
        })
    }
}

impl<M> SwiGlu<M> {
    fn make<'a, V: 'a, S: Source<&'a M, &'a V>>(
        &'a self,
        source: &mut S,
    ) -> Result<SwiGlu<S::Matrix>, S::Error> {
        Ok(SwiGlu {
            gate_up: source.matrix(&self.gate_up)?,
            down: source.matrix(&self.down)?,
        })
    }
}

/// Collects parts in order.
struct Parts<'a, M, V> {
    matrices: Vec<&'a M>,
    vectors: Vec<&'a V>,
}

impl<M, V> Default for Parts<'_, M, V> {
    fn default() -> Self {
        Self {
            matrices: Vec::new(),
            vectors: Vec::new(),
        }
    }
}

impl<'a, M, V> Source<&'a M, &'a V> for Parts<'a, M, V> {
    type Matrix = ();
    type Vector = ();
    type Error = std::convert::Infallible;

    fn matrix(&mut self, part: &'a M) -> Result<(), Self::Error> {
        self.matrices.push(part);
        Ok(())
    }

    fn vector(&mut self, part: &'a V) -> Result<(), Self::Error> {
        self.vectors.push(part);
        Ok(())
    }
}
