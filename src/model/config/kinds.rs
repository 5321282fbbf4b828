//! Which kinds of models, mixers and feed-forward layers there are, and the shapes of those that have one.

/// Which published architecture a checkpoint is; all run the same forward pass over different parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// `GraniteForCausalLM` (Granite 3.x, 4.1 and 4.2).
    Granite,
    /// `GraniteMoeForCausalLM` (the mixtures of experts of Granite 3.x).
    GraniteMoe,
    /// `GraniteMoeSharedForCausalLM`: with a feed-forward layer that all tokens share beside the experts.
    GraniteMoeShared,
    /// `GraniteMoeHybridForCausalLM` (Granite 4.0): attention or Mamba-2 in each layer, with or without experts.
    GraniteHybrid,
    /// `LlamaForCausalLM`: Granite with all multipliers neutral.
    Llama,
}

/// In which part of a layer a token depends on earlier tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixerKind {
    /// Grouped-query attention.
    Attention,
    /// A recurrence with a state of fixed size.
    Mamba,
}

/// The shape of the Mamba-2 layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mamba {
    /// Heads, each with its own decay.
    pub heads: usize,
    /// Width of a head: 16, 32 or a multiple of 64.
    pub head_dim: usize,
    /// Values of the state for each of a head's channels; a multiple of 64.
    pub state_size: usize,
}

impl Mamba {
    /// Channels of all heads; a multiple of 64.
    pub const fn inner(self) -> usize {
        self.heads * self.head_dim
    }

    /// Channels of the convolution: the heads', and one each for every value of the inputs and outputs of the state.
    pub const fn convolved(self) -> usize {
        self.inner() + 2 * self.state_size
    }

    /// Outputs of the first matrix: gates, convolved channels, and a time step for each head.
    pub const fn projected(self) -> usize {
        self.inner() + self.convolved() + self.heads
    }
}

/// The shape of a mixture of experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Experts {
    /// Experts of a layer.
    pub count: usize,
    /// How many of them a token takes.
    pub taken: usize,
    /// Width of one expert's feed-forward layer; a multiple of 32.
    pub width: usize,
}
