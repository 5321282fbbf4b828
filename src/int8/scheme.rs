//! How weights are mapped to codes: the choices that the user has.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::rotation::Rotation;

/// Every choice in the mapping `w ≈ s · (q − z)`. The same kernels serve all of them.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Scheme {
    /// Whether the range of codes lies around zero.
    pub mapping: Mapping,
    /// Which weights share a scale and zero point.
    pub granularity: Granularity,
    /// Which weights the range of codes covers; weights outside it are clamped.
    pub range: Range,
    /// Which rotation spreads outliers over a group before it is quantized.
    pub rotation: Rotation,
}

/// Whether the range of codes lies around zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mapping {
    /// The zero point is 128 and codes are 1…255: they cover −r to r.
    #[default]
    Symmetric,
    /// Every range has its own zero point and uses all 256 codes: they cover its smallest weight to its largest.
    Affine,
}

/// Which weights share a scale and zero point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Granularity {
    /// All weights of a matrix.
    Tensor,
    /// The weights of one output channel.
    #[default]
    Channel,
    /// 256 consecutive weights of one output channel: 1.6 % more memory, and one more multiplication per group.
    Group,
}

/// Which weights the range of codes covers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Range {
    /// All weights.
    #[default]
    Absmax,
    /// This percentage of the weights, those nearest to the middle: above 50, at most 100.
    Percentile(f32),
    /// The range with the smallest squared error.
    Mse,
}

impl FromStr for Range {
    type Err = String;

    /// Reads `absmax`, `mse`, or `percentile:99.9`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "absmax" => Ok(Self::Absmax),
            "mse" => Ok(Self::Mse),
            _ => text
                .strip_prefix("percentile:")
                .and_then(|share| share.parse().ok())
                .filter(|share| *share > 50.0 && *share <= 100.0)
                .map(Self::Percentile)
                .ok_or_else(|| {
                    "write absmax, mse, or percentile:P with P above 50 and at most 100".to_owned()
                }),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absmax => f.write_str("absmax"),
            Self::Mse => f.write_str("mse"),
            Self::Percentile(share) => write!(f, "percentile:{share}"),
        }
    }
}

impl fmt::Display for Scheme {
    /// In a few words, such as `symmetric per channel, absmax, rotation full`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mapping = match self.mapping {
            Mapping::Symmetric => "symmetric",
            Mapping::Affine => "affine",
        };
        let granularity = match self.granularity {
            Granularity::Tensor => "tensor",
            Granularity::Channel => "channel",
            Granularity::Group => "group",
        };
        let (range, rotation) = (self.range, self.rotation);
        write!(
            f,
            "{mapping} per {granularity}, {range}, rotation {rotation}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_it_is_printed() {
        for text in ["absmax", "mse", "percentile:99.9", "percentile:100"] {
            assert_eq!(text.parse::<Range>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "max",
            "percentile",
            "percentile:50",
            "percentile:101",
            "percentile:NaN",
        ] {
            assert!(text.parse::<Range>().is_err(), "{text}");
        }
    }
}
