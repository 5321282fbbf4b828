//! Malformed GGUF files. Each is the small Granite with one error.

use candle_core::quantized::GgmlDType;

use crate::assert_refused;
use crate::gguf_files::open;
use crate::gguf_granite::{granite, metadata};
use crate::gguf_hybrid::{HYBRID, HYBRID_WITH_EXPERTS, MIXTURE, gguf};
use crate::gguf_writer::{ARRAY, BOOL, Gguf, I32, TEXT, U8, U32, array, text};

const BAD_MODEL: u8 = 65;

/// Writes the bytes and asserts that they are refused in one line that names the file and `parts`.
#[track_caller]
fn bytes_refused(bytes: &[u8], parts: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.gguf");
    std::fs::write(&path, bytes).unwrap();
    let parts = [&["wrong.gguf"], parts].concat();
    assert_refused(open(&path), BAD_MODEL, &parts);
}

/// Changes one thing in the valid file and asserts that it is refused.
#[track_caller]
fn refused(change: impl FnOnce(&mut Gguf), parts: &[&str]) {
    let mut gguf = granite(GgmlDType::Q8_0);
    change(&mut gguf);
    bytes_refused(&gguf.bytes(), parts);
}

#[test]
fn a_missing_file_is_not_found() {
    assert_refused(open("nowhere.gguf".as_ref()), 66, &["nowhere.gguf"]);
}

#[test]
fn what_is_not_gguf_of_a_known_version_is_refused() {
    bytes_refused(b"", &["is empty"]);
    bytes_refused(b"GGU", &["magic"]);
    bytes_refused(b"PK\x03\x04 and so on", &["magic", "not a GGUF file"]);
    bytes_refused(b"GGUF", &["version"]);
    refused(|gguf| gguf.version = 1, &["version", "1 is not supported"]);
    refused(|gguf| gguf.version = 4, &["version", "4 is not supported"]);
    refused(
        |gguf| gguf.version = 3u32.swap_bytes(),
        &["version", "big-endian"],
    );
}

#[test]
fn counts_and_lengths_that_the_file_cannot_hold_are_refused_before_they_are_used() {
    for lie in [u64::MAX, 1 << 62, 1 << 40] {
        let shown = lie.to_string();
        refused(
            |gguf| gguf.claimed_entries = Some(lie),
            &["metadata count", &shown],
        );
        refused(
            |gguf| gguf.claimed_tensors = Some(lie),
            &["tensor count", &shown],
        );
        let long = lie.to_le_bytes();
        refused(
            |gguf| _ = gguf.set("general.name", TEXT, long.to_vec()),
            &["general.name", &shown],
        );
        for kind in [U8, U32, TEXT] {
            let claim = [&kind.to_le_bytes()[..], &long].concat();
            refused(
                |gguf| _ = gguf.set("some.list", ARRAY, claim),
                &["some.list", &shown],
            );
        }
    }
    // More entries than there are, but no more than could fit: reading continues into the tensors.
    refused(|gguf| gguf.claimed_entries = Some(1000), &[]);
    refused(|gguf| gguf.claimed_tensors = Some(1000), &[]);
}

#[test]
fn metadata_values_that_are_not_well_formed_are_refused_by_key() {
    let key = "some.key";
    refused(
        |gguf| _ = gguf.set(key, 13, vec![0; 8]),
        &[key, "value type 13"],
    );
    refused(
        |gguf| _ = gguf.set(key, BOOL, vec![2]),
        &[key, "neither true"],
    );
    refused(
        |gguf| _ = gguf.set(key, TEXT, [&2u64.to_le_bytes()[..], b"\xff\xfe"].concat()),
        &[key, "utf-8"],
    );
    let nested = array(ARRAY, &[array(U32, &[])]);
    refused(
        |gguf| _ = gguf.set(key, ARRAY, nested),
        &[key, "value type 9"],
    );
    refused(
        |gguf| {
            gguf.entries
                .push(("general.architecture".into(), TEXT, text("llama")))
        },
        &["general.architecture", "twice"],
    );
}

#[test]
fn architectures_and_features_we_do_not_compute_are_refused() {
    for other in ["granitemoeswa", "qwen2", ""] {
        let change = |gguf: &mut Gguf| _ = gguf.set_text("general.architecture", other);
        refused(change, &["general.architecture", other]);
    }
    refused(
        |gguf| _ = gguf.remove("general.architecture"),
        &["general.architecture", "missing"],
    );
    refused(
        |gguf| _ = gguf.set_u32("granite.expert_count", 8),
        &["granite.expert_count", "8 experts", "of another family"],
    );
    refused(
        |gguf| _ = gguf.set_u32("split.count", 2),
        &["split.count", "2 parts"],
    );
    refused(
        |gguf| _ = gguf.set_text("granite.rope.scaling.type", "yarn"),
        &["granite.rope.scaling.type", "yarn"],
    );
    refused(
        |gguf| {
            _ = gguf
                .set_text("granite.rope.scaling.type", "linear")
                .set_f32("granite.rope.scaling.factor", 4.0)
        },
        &["granite.rope.scaling.factor", "4"],
    );
    refused(
        |gguf| _ = gguf.set_f32("granite.rope.scale_linear", 2.0),
        &["granite.rope.scale_linear"],
    );
    refused(
        |gguf| _ = gguf.set("granite.rope.scaling.finetuned", BOOL, vec![0]),
        &["finetuned", "rotary"],
    );
}

#[test]
fn harmless_forms_of_rotary_scaling_are_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("right.gguf");
    for (kind, factor) in [("none", 1.0), ("none", 4.0), ("linear", 1.0)] {
        let mut gguf = granite(GgmlDType::Q8_0);
        gguf.set_text("granite.rope.scaling.type", kind)
            .set_f32("granite.rope.scaling.factor", factor);
        gguf.write(&path);
        open(&path).unwrap();
    }
}

#[test]
fn metadata_that_is_missing_or_of_the_wrong_type_is_named() {
    for key in [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
        "logit_scale",
    ] {
        let key = format!("granite.{key}");
        refused(|gguf| _ = gguf.remove(&key), &[&key, "missing"]);
        refused(|gguf| _ = gguf.set_text(&key, "many"), &[&key, "must be"]);
    }
    for key in ["granite.rope.freq_base", "granite.attention.scale"] {
        refused(|gguf| _ = gguf.set_f32(key, f32::NAN), &[key, "finite"]);
    }
    let differing = array(U32, &[2u32.to_le_bytes().into(), 4u32.to_le_bytes().into()]);
    refused(
        |gguf| _ = gguf.set("granite.attention.head_count_kv", ARRAY, differing),
        &["head_count_kv", "same in every layer"],
    );
    refused(
        |gguf| _ = gguf.set_u32("granite.attention.head_count", 0),
        &["head_count", "zero"],
    );
    refused(
        |gguf| _ = gguf.set_u32("granite.vocab_size", 321),
        &["granite.vocab_size", "320"],
    );
    refused(
        |gguf| _ = gguf.set_u32("granite.rope.dimension_count", 31),
        &["dimension_count", "31"],
    );
    refused(
        |gguf| _ = gguf.set_u32("granite.attention.key_length", 64),
        &["key_length", "64"],
    );
}

#[test]
fn tensors_of_other_models_are_refused_by_name() {
    for (name, problem) in [
        ("rope_freqs.weight", "rotary"),
        ("blk.0.attn_q.bias", "biases"),
        ("blk.1.ffn_gate_exps.weight", "experts"),
        ("blk.1.ssm_in.weight", "Mamba"),
        ("blk.2.attn_norm.weight", "number of layers"),
        ("blk.x.attn_norm.weight", "not a tensor"),
        ("v.patch_embd.weight", "not a tensor"),
    ] {
        refused(
            |gguf| _ = gguf.add_tensor(name, &[1], 0, vec![0; 4]),
            &[name, problem],
        );
    }
}

#[test]
fn tensors_whose_description_does_not_add_up_are_refused_by_name() {
    let name = "blk.1.ffn_up.weight";
    refused(
        |gguf| gguf.tensor(name).dimensions = vec![],
        &[name, "0 dimensions"],
    );
    refused(
        |gguf| gguf.tensor(name).dimensions = vec![1; 5],
        &[name, "5 dimensions"],
    );
    refused(
        |gguf| gguf.tensor(name).dimensions = vec![256, 0],
        &[name, "zero"],
    );
    refused(
        |gguf| gguf.tensor(name).dimensions = vec![1 << 40, 1 << 40],
        &[name],
    );
    refused(
        |gguf| gguf.tensor(name).dimensions = vec![u64::MAX - 31, 3],
        &[name],
    );
    refused(
        |gguf| gguf.tensor(name).dimensions = vec![255, 512],
        &[name, "multiple of 32"],
    );
    refused(|gguf| gguf.tensor(name).kind = 99, &[name, "number 99"]);
    refused(
        |gguf| gguf.tensor(name).claimed_offset = Some(33),
        &[name, "33"],
    );
    refused(
        |gguf| gguf.tensor(name).claimed_offset = Some(1 << 40),
        &[name, "past the end"],
    );
    refused(
        |gguf| gguf.tensor(name).claimed_offset = Some(u64::MAX - 31),
        &[name, "past the end"],
    );
    refused(
        |gguf| gguf.tensor(name).claimed_offset = Some(0),
        &["overlaps"],
    );
    let again = |gguf: &mut Gguf| {
        let copy = gguf.tensor(name).clone();
        gguf.tensors.push(copy);
    };
    refused(again, &[name, "twice"]);
    for alignment in [0, 4, 33] {
        let change = |gguf: &mut Gguf| _ = gguf.set_u32("general.alignment", alignment);
        refused(change, &["general.alignment"]);
    }
    let q = "blk.0.attn_q.weight";
    refused(
        |gguf| gguf.tensor(q).dimensions = vec![512, 128],
        &[q, "256 rows"],
    );
    refused(
        |gguf| {
            gguf.tensors
                .retain(|tensor| tensor.name != "token_embd.weight")
        },
        &["token_embd.weight", "missing"],
    );
}

/// One row for each family of types: codebooks, ternary, four-bit floats, another CPU's layout, and a withdrawn type.
#[test]
fn types_that_are_not_read_are_called_by_their_names() {
    let name = "blk.1.ffn_up.weight";
    for (kind, type_name) in [
        (16, "IQ2_XXS"),
        (20, "IQ4_NL"),
        (21, "IQ3_S"),
        (23, "IQ4_XS"),
        (34, "TQ1_0"),
        (39, "MXFP4"),
        (31, "Q4_0_4_4"),
        (4, "Q4_2"),
    ] {
        let advice = "get the Q8_0 file of the same repository";
        refused(
            |gguf| gguf.tensor(name).kind = kind,
            &[name, &format!("type {type_name},"), advice],
        );
    }
}

#[test]
fn a_granite_with_an_unknown_label_splits_as_its_family_and_other_models_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    let pre = "tokenizer.ggml.pre";
    let ids = |gguf: &Gguf| {
        gguf.write(&path);
        let tokenizer = open(&path).unwrap().tokenizer;
        let encoding = tokenizer.encode("in 1984, don't 12345", false).unwrap();
        encoding.get_ids().to_vec()
    };
    let mut gguf = granite(GgmlDType::Q8_0);
    let expected = ids(gguf.set_text(pre, "refact"));
    assert_eq!(ids(gguf.set_text(pre, "granite")), expected);
    assert_eq!(ids(gguf.set_text(pre, "default")), expected);
    assert_eq!(ids(gguf.remove(pre)), expected);

    let label = "unheard-of";
    refused(
        |gguf| {
            let of_llama = gguf.entries.clone().into_iter();
            let of_llama =
                of_llama.map(|(key, kind, value)| (key.replace("granite.", "llama."), kind, value));
            gguf.entries = of_llama.collect();
            _ = gguf
                .set_text("general.architecture", "llama")
                .set_text(pre, label);
        },
        &[pre, label, "safetensors"],
    );
}

#[test]
fn tokenizers_we_cannot_rebuild_are_refused_by_key() {
    let pre = "tokenizer.ggml.pre";
    refused(
        |gguf| _ = gguf.set_text("tokenizer.ggml.model", "llama"),
        &["tokenizer.ggml.model", "llama"],
    );
    refused(|gguf| _ = gguf.set_u32(pre, 1), &[pre, "must be"]);
    for key in ["model", "tokens", "merges"] {
        let key = format!("tokenizer.ggml.{key}");
        refused(|gguf| _ = gguf.remove(&key), &[&key, "missing"]);
        refused(|gguf| _ = gguf.set_u32(&key, 1), &[&key, "must be"]);
    }
    let tokens = "tokenizer.ggml.tokens";
    refused(
        |gguf| _ = gguf.set_texts(tokens, &["a", "b", "a"]),
        &[tokens, "0 and 2"],
    );
    let types = "tokenizer.ggml.token_type";
    let one = array(I32, &[1i32.to_le_bytes().into()]);
    refused(
        |gguf| _ = gguf.set(types, ARRAY, one),
        &[types, "1 types for 320 tokens"],
    );
    let merges = "tokenizer.ggml.merges";
    refused(
        |gguf| _ = gguf.set_texts(merges, &["ab"]),
        &[merges, "not two tokens"],
    );
    refused(
        |gguf| _ = gguf.set_texts(merges, &["x nowhere"]),
        &[merges, "nowhere"],
    );
}

#[test]
fn a_scale_that_is_not_finite_is_refused_with_its_row_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.gguf");
    let mut gguf = granite(GgmlDType::Q8_0);
    // A block of 34 bytes begins with its scale; 256 values are 8 blocks. Row 1 in the file is row 16 of the first head
    // of 32.
    let infinity = 0x7c00u16.to_le_bytes();
    gguf.tensor("blk.0.attn_q.weight").data[8 * 34..][..2].copy_from_slice(&infinity);
    gguf.write(&path);
    let checkpoint = open(&path).unwrap();
    let tensors = checkpoint.tensors().unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let mut out = vec![0.0; 256];
    tensors.read_rows(name, 1..2, &mut out).unwrap();
    assert_refused(
        tensors.read_rows(name, 16..17, &mut out),
        BAD_MODEL,
        &["wrong.gguf", name, "row 16"],
    );
}

/// Every prefix of the header is a truncated download.
#[test]
fn a_file_cut_off_anywhere_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.gguf");
    let whole = granite(GgmlDType::Q8_0).bytes();
    let header = metadata().bytes().len();
    // Every 61st position in the metadata, every position in the tensor list, and a few in the data.
    let ends = (1..header).step_by(61).chain(header..header + 1200);
    for end in ends.chain([whole.len() / 2, whole.len() - 40]) {
        std::fs::write(&path, &whole[..end]).unwrap();
        assert_refused(open(&path), BAD_MODEL, &["wrong.gguf"]);
    }
}

#[test]
fn more_entries_than_any_model_has_are_refused_even_if_they_are_there() {
    let key = |i: u32| (format!("k{i}"), U8, vec![0]);
    refused(
        |gguf| gguf.entries.extend((0..65_536).map(key)),
        &["metadata count", "more than"],
    );
    let tokens = "tokenizer.ggml.tokens";
    let many = array(TEXT, &vec![text(""); (1 << 20) + 1]);
    refused(
        |gguf| _ = gguf.set(tokens, ARRAY, many),
        &[tokens, "more than"],
    );
}

/// A file with one changed byte opens or is refused in one line; it never ends the process.
#[test]
fn no_single_changed_byte_in_the_header_causes_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.gguf");
    let dense = (granite(GgmlDType::Q8_0), 100);
    let others = [HYBRID, HYBRID_WITH_EXPERTS, MIXTURE];
    let others = others.map(|name| (gguf(name, |_| GgmlDType::Q8_0), 100));
    for (mut whole, least) in [dense].into_iter().chain(others) {
        let bytes = whole.bytes();
        whole.tensors.truncate(20);
        whole
            .tensors
            .iter_mut()
            .for_each(|tensor| tensor.data.clear());
        let header = whole.bytes().len();
        let mut refusals = 0;
        for at in (0..header).step_by(13) {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0xff;
            std::fs::write(&path, bytes).unwrap();
            if let Err(error) = open(&path) {
                assert_eq!(error.exit_code(), BAD_MODEL);
                assert!(!error.to_string().contains('\n'));
                refusals += 1;
            }
        }
        assert!(refusals > least, "only {refusals} were refused");
    }
}
