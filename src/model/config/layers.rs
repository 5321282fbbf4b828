//! What a layer is made of: attention or Mamba-2, one feed-forward layer or experts.

use serde_json::Value;

use super::fields::Fields;
use super::kinds::{Architecture, Experts, Mamba, MixerKind};
use crate::error::Result;
use crate::int8::PANEL;

/// Rows that a convolution looks at, its own included. No Granite has another number.
pub const CONVOLUTION_TAPS: usize = 4;

/// The most experts of all layers together, ten times as many as any Granite has. The blueprint lists them one by one, so
/// without a limit a few numbers in a configuration would take gigabytes.
const MOST_EXPERTS: usize = 1 << 15;

impl Fields<'_> {
    /// What mixes the tokens in each of `num_layers` layers. Every architecture but the hybrid has attention everywhere.
    pub fn mixers(&self, architecture: Architecture, num_layers: usize) -> Result<Vec<MixerKind>> {
        const NAME: &str = "layer_types";
        let is_hybrid = architecture == Architecture::GraniteHybrid;
        let Some(value) = self.get(NAME) else {
            return match is_hybrid {
                true => Err(self.missing(NAME, "\"attention\" or \"mamba\" for each layer")),
                false => Ok(vec![MixerKind::Attention; num_layers]),
            };
        };
        let types = value.as_array().filter(|types| types.len() == num_layers);
        let types = types.ok_or_else(|| {
            let expected = format!("expected {num_layers} layer types, as num_hidden_layers says");
            self.is_but(NAME, value, expected)
        })?;
        let kind = |(layer, kind): (usize, &Value)| match kind.as_str() {
            Some("attention" | "full_attention") => Ok(MixerKind::Attention),
            Some("mamba" | "linear_attention") if is_hybrid => Ok(MixerKind::Mamba),
            _ => {
                let expected = match is_hybrid {
                    true => "expected \"attention\" or \"mamba\"",
                    false => "expected \"attention\": sliding-window layers are not supported",
                };
                Err(self.is_but(&format!("{NAME}[{layer}]"), kind, expected))
            }
        };
        let mixers: Vec<MixerKind> = types.iter().enumerate().map(kind).collect::<Result<_>>()?;
        // The pages of a sequence are those of its attention; every Granite has some.
        if !mixers.contains(&MixerKind::Attention) {
            let problem = "has no layer with attention, expected at least one";
            return Err(self.bad(NAME, problem));
        }
        Ok(mixers)
    }

    /// The shape of the Mamba-2 layers.
    pub fn mamba(&self, hidden_size: usize) -> Result<Mamba> {
        for (name, expected) in [
            ("mamba_n_groups", 1.0),
            ("mamba_d_conv", CONVOLUTION_TAPS as f64),
        ] {
            self.number(name, expected, expected)?;
        }
        if self.flag("mamba_proj_bias")? {
            let problem = "is true, expected false: biases of projections are not supported";
            return Err(self.bad("mamba_proj_bias", problem));
        }
        if self.get("mamba_conv_bias").is_some() && !self.flag("mamba_conv_bias")? {
            let problem = "is false, expected true: a convolution without a bias is not supported";
            return Err(self.bad("mamba_conv_bias", problem));
        }
        self.refuse_time_step_limit()?;
        // Four times the widest published, as everywhere.
        let heads = self.count("mamba_n_heads", 1_024)?;
        let state_size = self.count("mamba_d_state", 1_024)?;
        if !state_size.is_multiple_of(PANEL) {
            let problem = format!("is {state_size}, expected a multiple of {PANEL}");
            return Err(self.bad("mamba_d_state", problem));
        }
        let expand = match self.get("mamba_expand") {
            Some(_) => self.count("mamba_expand", 64)?,
            None => 2,
        };
        let inner = expand * hidden_size;
        let is_automatic = |value: &Value| value == "auto";
        let head_dim = match self.get("mamba_d_head") {
            Some(value) if !is_automatic(value) => self.count("mamba_d_head", 1_024)?,
            _ => inner / heads,
        };
        if heads * head_dim != inner {
            let problem = format!(
                "is {head_dim}, but {heads} heads of it are not mamba_expand · hidden_size = {inner}"
            );
            return Err(self.bad("mamba_d_head", problem));
        }
        // The kernels take 16, 32 or 64 columns of a head at a time, and panels that no two matrices share.
        let is_supported = matches!(head_dim, 16 | 32) || head_dim.is_multiple_of(PANEL);
        if !is_supported || !inner.is_multiple_of(PANEL) {
            let problem = format!(
                "is {head_dim}, expected 16, 32 or a multiple of {PANEL}, with {heads} heads that fill whole panels of {PANEL}"
            );
            return Err(self.bad("mamba_d_head", problem));
        }
        Ok(Mamba {
            heads,
            head_dim,
            state_size,
        })
    }

    /// Refuses bounds on the time steps other than zero and infinity, which are no bounds.
    fn refuse_time_step_limit(&self) -> Result<()> {
        const NAME: &str = "time_step_limit";
        let Some(value) = self.get(NAME) else {
            return Ok(());
        };
        // JSON has no infinity; transformers writes an object in its place.
        let is_infinite = |value: &Value| {
            value == &serde_json::json!({"__float__": "Infinity"}) || value == "Infinity"
        };
        let is_unbounded = match value.as_array().map(Vec::as_slice) {
            Some([least, most]) => least.as_f64() == Some(0.0) && is_infinite(most),
            _ => false,
        };
        match is_unbounded {
            true => Ok(()),
            false => Err(self.is_but(NAME, value, "expected [0, Infinity]")),
        }
    }

    /// The experts, if the model has some.
    pub fn experts(
        &self,
        architecture: Architecture,
        hidden_size: usize,
        num_layers: usize,
    ) -> Result<Option<Experts>> {
        const COUNT: &str = "num_local_experts";
        let must_have = matches!(
            architecture,
            Architecture::GraniteMoe | Architecture::GraniteMoeShared
        );
        let may_have = must_have || architecture == Architecture::GraniteHybrid;
        for name in [COUNT, "num_experts"] {
            let count = self.number(name, 0.0, f64::MAX)?.unwrap_or(0.0);
            if count > 0.0 && (!may_have || name != COUNT) {
                let problem = format!("is {count}, expected 0: {architecture:?} has no experts");
                return Err(self.bad(name, problem));
            }
        }
        if !must_have && self.number(COUNT, 0.0, f64::MAX)?.unwrap_or(0.0) == 0.0 {
            return Ok(None);
        }
        // Ten times as many as any Granite has.
        let count = self.count(COUNT, 1_024)?;
        if count * num_layers > MOST_EXPERTS {
            let problem = format!(
                "is {count} in each of {num_layers} layers, expected at most {MOST_EXPERTS} in all"
            );
            return Err(self.bad(COUNT, problem));
        }
        let taken = self.count("num_experts_per_tok", count)?;
        // In a model with experts this is the width of one of them.
        let width = self.count("intermediate_size", 1 << 20)?;
        // Panels hold 32 gate and 32 up columns of one expert, and 64 outputs of one expert.
        if !width.is_multiple_of(PANEL / 2) {
            let problem = format!("is {width}, expected a multiple of {}", PANEL / 2);
            return Err(self.bad("intermediate_size", problem));
        }
        if !hidden_size.is_multiple_of(PANEL) {
            let problem = format!("is {hidden_size}, expected a multiple of {PANEL}");
            return Err(self.bad("hidden_size", problem));
        }
        Ok(Some(Experts {
            count,
            taken,
            width,
        }))
    }

    /// The width of the feed-forward layer that all tokens pass: of the only one, or of the one that is shared beside
    /// experts; 0 if there are only experts.
    pub fn shared_width(
        &self,
        architecture: Architecture,
        experts: Option<Experts>,
    ) -> Result<usize> {
        const SHARED: &str = "shared_intermediate_size";
        const MOST: usize = 1 << 20;
        match architecture {
            Architecture::Granite | Architecture::Llama => self.count("intermediate_size", MOST),
            Architecture::GraniteMoe => Ok(0),
            Architecture::GraniteMoeShared | Architecture::GraniteHybrid => {
                let is_none =
                    experts.is_some() && self.number(SHARED, 0.0, MOST as f64)? == Some(0.0);
                match is_none {
                    true => Ok(0),
                    // Without experts the shared layer is the only one; `intermediate_size` is then unused.
                    false => self.count(SHARED, MOST),
                }
            }
        }
    }
}
