//! Formats that models are published in and that cannot be read here: the name of each, how it is recognised, and what
//! to use instead. Every error about such a format takes its text from here.

use std::path::Path;

use crate::error::Error;

/// Advice for weights that another program has quantized.
pub const UNQUANTIZED: &str =
    "take the model's unquantized (bf16) repository, or the Q8_0 file of its GGUF repository";
/// Advice for an export for another program.
const SAFETENSORS: &str =
    "take the repository with the model's safetensors, or the Q8_0 file of its GGUF repository";

/// The problem with a Bamba, and what runs instead.
pub const BAMBA: &str = "is a relative of Granite's hybrids that does not run here (it has rotary positions beside Mamba-2 layers); take one of Granite's own, such as granite-4.0-h-1b";
/// The problem with a Granite of another kind, and what runs instead.
pub const OTHER_GRANITE: &str = "is a Granite that does not run here (sliding windows, switched adapters, images and speech are not supported); take a text model, such as granite-4.0-h-tiny or granite-4.1-3b";
/// The problem with somebody else's mixture of experts, and what runs instead.
pub const OTHER_EXPERTS: &str = "is a mixture of experts of another family, which does not run here; take one of Granite's, such as granite-4.0-h-tiny or granite-3.1-3b-a800m-instruct";

/// A format that is not supported.
#[derive(Debug, PartialEq, Eq)]
pub struct Form {
    /// The name that its users know it by.
    pub name: &'static str,
    sign: Sign,
    instead: &'static str,
}

/// How a format is recognised.
#[derive(Debug, PartialEq, Eq)]
enum Sign {
    /// `quantization_config.quant_method` in `config.json`.
    Method(&'static [&'static str]),
    /// `quantization_config.format` of compressed-tensors.
    Format(&'static [&'static str]),
    /// The type of a tensor in a safetensors file.
    Type(&'static [&'static str]),
    /// The end of a file's name, in a folder or repository without weights that can be read.
    File(&'static [&'static str]),
    /// Recognised elsewhere in the code, which refers to the constant.
    Named,
}

const fn form(name: &'static str, sign: Sign, instead: &'static str) -> Form {
    Form {
        name,
        sign,
        instead,
    }
}

/// Four-bit weights of bitsandbytes.
pub static BITSANDBYTES_4BIT: Form = form("4-bit bitsandbytes weights", Sign::Named, UNQUANTIZED);
/// MLX's own quantization, which states its bits but no method.
pub static MLX: Form = form("quantized MLX weights", Sign::Named, UNQUANTIZED);

/// Every format with a sign. The first match is reported, so the specific ones come before the general ones.
#[rustfmt::skip]
static FORMS: [Form; 21] = [
    form("4-bit AWQ weights", Sign::Method(&["awq"]), UNQUANTIZED),
    form("GPTQ weights", Sign::Method(&["gptq", "auto-round", "autoround"]), UNQUANTIZED),
    form("FP8 weights", Sign::Method(&["fp8", "fbgemm_fp8", "finegrained_fp8"]), UNQUANTIZED),
    form("MXFP4 weights", Sign::Method(&["mxfp4"]), UNQUANTIZED),
    form("weights that NVIDIA's ModelOpt quantized", Sign::Method(&["modelopt"]), UNQUANTIZED),
    form("FP8 weights", Sign::Format(&["float-quantized", "naive-quantized"]), UNQUANTIZED),
    form("packed weights of 4 or fewer bits", Sign::Format(&["pack-quantized", "marlin-24"]), UNQUANTIZED),
    form("FP4 weights", Sign::Format(&["nvfp4-pack-quantized", "mxfp4-pack-quantized"]), UNQUANTIZED),
    form("FP8 weights", Sign::Type(&["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]), UNQUANTIZED),
    form("FP4 or FP6 weights", Sign::Type(&["F4", "F6_E2M3", "F6_E3M2"]), UNQUANTIZED),
    form("packed codes, as MLX writes them", Sign::Type(&["U32"]), UNQUANTIZED),
    form("packed codes, as GPTQ and AWQ write them", Sign::Type(&["I32"]), UNQUANTIZED),
    form(
        "a LoRA adapter, which is no model without its base,", Sign::File(&["adapter_config.json", "adapter_model.safetensors"]),
        "merge it into its base model (merge_and_unload of peft, then save_pretrained) and name the folder that this makes"
    ),
    form("OpenVINO IR", Sign::File(&["openvino_model.xml", "openvino_model.bin"]), SAFETENSORS),
    form("an ONNX export", Sign::File(&[".onnx", ".onnx_data", ".onnx.data", ".ort"]), SAFETENSORS),
    form("a Core ML export", Sign::File(&[".mlmodel", ".mlpackage"]), SAFETENSORS),
    form("a TensorFlow export", Sign::File(&[".tflite", ".litertlm", ".h5"]), SAFETENSORS),
    form("a Flax export", Sign::File(&[".msgpack"]), SAFETENSORS),
    form("weights in Mistral's own layout", Sign::File(&["consolidated.safetensors", "consolidated.00.pth"]), SAFETENSORS),
    form("GGUF's predecessor GGML", Sign::File(&[".ggml", ".ggmlv3.q4_0.bin", ".ggmlv3.q8_0.bin"]), "get the Q8_0 file of a GGUF repository"),
    form(
        "a Python pickle, which can run code when it is opened,", Sign::File(&[".bin", ".pt", ".pth", ".ckpt", ".pkl"]),
        "convert it to safetensors (save_pretrained of transformers), or take a repository with safetensors"
    ),
];

impl Form {
    /// The format with this `quantization_config.quant_method`.
    pub fn by_method(method: &str) -> Option<&'static Self> {
        find(|sign| matches!(sign, Sign::Method(names) if names.contains(&method)))
    }

    /// The format with this `format` of compressed-tensors.
    pub fn by_format(format: &str) -> Option<&'static Self> {
        find(|sign| matches!(sign, Sign::Format(names) if names.contains(&format)))
    }

    /// The format whose tensors have the safetensors type `dtype`.
    pub fn by_type(dtype: &str) -> Option<&'static Self> {
        find(|sign| matches!(sign, Sign::Type(names) if names.contains(&dtype)))
    }

    /// The format that the names of a folder's or repository's files show, and the file that shows it.
    pub fn by_files<'n>(names: &[&'n str]) -> Option<(&'static Self, &'n str)> {
        // Files that a training run leaves beside the weights.
        const LEFT_OVER: [&str; 4] = [
            "training_args.bin",
            "optimizer.pt",
            "scheduler.pt",
            "rng_state.pth",
        ];
        let names = names.iter().filter(|name| !LEFT_OVER.contains(name));
        FORMS.iter().find_map(|form| {
            let Sign::File(endings) = &form.sign else {
                return None;
            };
            let has_ending = |name: &&&'n str| {
                let name = name.to_lowercase();
                endings.iter().any(|ending| name.ends_with(ending))
            };
            Some((form, *names.clone().filter(has_ending).min()?))
        })
    }

    /// The problem and the advice, in one line that continues `field: `.
    pub fn problem(&self) -> String {
        format!("{} cannot be read; {}", self.name, self.instead)
    }

    /// The error for `field` in `file`.
    pub fn refusal(&self, file: impl AsRef<Path>, field: &str) -> Error {
        Error::bad_model(file, field, self.problem())
    }
}

fn find(fits: impl Fn(&Sign) -> bool) -> Option<&'static Form> {
    FORMS.iter().find(|form| fits(&form.sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_special_is_named_before_what_is_general() {
        for (names, form, file) in [
            (
                &["README.md", "openvino_model.bin", "openvino_model.xml"][..],
                "OpenVINO IR",
                "openvino_model.bin",
            ),
            (
                &["onnx/model.onnx", "pytorch_model.bin"],
                "an ONNX export",
                "onnx/model.onnx",
            ),
            (
                &["adapter_model.safetensors", "training_args.bin"],
                "a LoRA adapter, which is no model without its base,",
                "adapter_model.safetensors",
            ),
            (
                &["training_args.bin", "pytorch_model-00001-of-00002.bin"],
                "a Python pickle, which can run code when it is opened,",
                "pytorch_model-00001-of-00002.bin",
            ),
        ] {
            let found = Form::by_files(names).map(|(form, file)| (form.name, file));
            assert_eq!(found, Some((form, file)));
        }
        assert_eq!(Form::by_files(&["config.json", "training_args.bin"]), None);
    }

    #[test]
    fn every_form_says_in_one_line_what_to_do_instead() {
        for form in FORMS.iter().chain([&BITSANDBYTES_4BIT, &MLX]) {
            let line = form.problem();
            assert!(
                !line.contains('\n') && line.contains("cannot be read; "),
                "{line}"
            );
            let advised = ["take ", "get ", "merge ", "convert "];
            assert!(advised.iter().any(|verb| line.contains(verb)), "{line}");
        }
    }
}
