//! What can be typed for settings that are one of a few.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use crate::int8::rotation::Rotation;
use crate::int8::scheme::{Granularity, Mapping};
use crate::logging::LogFormat;
use crate::model::Placement;
use crate::telemetry::Aliases;

/// Lets `$type` be typed as one of these words; the text says what each means.
macro_rules! choices {
    ($type:ty { $($variant:ident = $word:literal, $help:literal;)* }) => {
        impl ValueEnum for $type {
            fn value_variants<'a>() -> &'a [Self] {
                &[$(Self::$variant),*]
            }

            fn to_possible_value(&self) -> Option<PossibleValue> {
                Some(match self {
                    $(Self::$variant => PossibleValue::new($word).help($help),)*
                })
            }
        }
    };
}

choices!(Mapping {
    Symmetric = "symmetric", "The zero point is 128, codes are 1…255: −r to r";
    Affine = "affine", "Every range has a zero point of its own and all 256 codes: from its smallest weight to its largest";
});

choices!(Granularity {
    Tensor = "tensor", "All of a matrix";
    Channel = "channel", "Those of one output channel";
    Group = "group", "256 neighbours in one output channel: 1.6 % more memory, and a multiplication more per group";
});

choices!(Rotation {
    None = "none", "None: for codes that were fixed elsewhere";
    Full = "full", "Hadamard matrices of 256: outliers spread over the whole group";
    Blocks64 = "blocks-64", "Hadamard matrices of 64";
    Strided = "strided", "Hadamard matrices of 16 over values 16 apart: plain additions of vectors, no permutation";
});

choices!(Placement {
    Mmap = "mmap", "In the file, mapped: ready at once, and shared with every process that serves the same file";
    Copy = "copy", "In memory of this process, on huge pages where the system has them";
});

choices!(LogFormat {
    Text = "text", "Plain text";
    Json = "json", "One JSON object per line, for log collectors; bytes from clients cannot forge a line";
});

choices!(Aliases {
    Vllm = "vllm", "vLLM's, such as vllm:num_requests_waiting, with the label model_name";
});
