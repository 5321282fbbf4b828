//! Malformed GGUF files of hybrids and mixtures of experts. Each is a small model with one error.

use std::path::Path;

use candle_core::quantized::GgmlDType;

use microgranite::error::Result;
use microgranite::model::{self, ModelConfig};
use microgranite::study::reference::{self, Arithmetic};

use crate::assert_refused;
use crate::gguf_files::open;
use crate::gguf_hybrid::{HYBRID, HYBRID_WITH_EXPERTS, MIXTURE, gguf};
use crate::gguf_writer::{ARRAY, BOOL, Gguf, U32, array};

const BAD_MODEL: u8 = 65;

/// `base | change | field named in the error | part of the problem`, one refusal per line. A change is `key=value` or, to
/// remove the key, `key=`; keys are without their architecture.
const OF_HYBRIDS_AND_MIXTURES: &str = r#"
hybrid | attention.head_count_kv=[0,0,2] | attention.head_count_kv | 3 entries for 6 layers
hybrid | attention.head_count_kv=[0,0,2,0,2,0,0] | attention.head_count_kv | 7 entries for 6 layers
hybrid | attention.head_count_kv=[0,0,2,0,4,0] | attention.head_count_kv | the same in every layer with attention
hybrid | attention.head_count_kv=[0,0,0,0,0,0] | attention.head_count_kv | zero in every layer
hybrid | attention.head_count_kv=[0,0,3,0,3,0] | attention.head_count_kv | 3 does not divide attention.head_count (4)
hybrid | attention.head_count_kv=0 | attention.head_count_kv | zero in every layer
hybrid | attention.head_count_kv=2 | blk.0.ssm_a | this layer has attention
hybrid | attention.head_count_kv=[0,0,0,0,2,0] | blk.2.attn_k.weight | this is a Mamba-2 layer
hybrid | block_count=7 | attention.head_count_kv | 6 entries for 7 layers
hybrid | block_count=4294967295 | block_count | only
hybrid | block_count=0 | block_count | is zero
hybrid | embedding_length=0 | embedding_length | is zero
hybrid | context_length=0 | context_length | is zero
hybrid | feed_forward_length=0 | feed_forward_length | is zero
hybrid | feed_forward_length= | feed_forward_length | missing
hybrid | ssm.inner_size=0 | ssm.inner_size | is zero
hybrid | ssm.inner_size= | ssm.inner_size | missing
hybrid | ssm.inner_size=300 | ssm.inner_size | 300 is not a multiple
hybrid | ssm.inner_size=64 | ssm.inner_size | 64 is not a multiple of embedding_length (128)
hybrid | ssm.time_step_rank=0 | ssm.time_step_rank | is zero
hybrid | ssm.time_step_rank=7 | ssm.inner_size | 256 is not a multiple of ssm.time_step_rank (7)
hybrid | ssm.time_step_rank= | ssm.time_step_rank | missing
hybrid | ssm.state_size=0 | ssm.state_size | is zero
hybrid | ssm.state_size= | ssm.state_size | missing
hybrid | ssm.group_count= | ssm.group_count | missing
hybrid | ssm.conv_kernel= | ssm.conv_kernel | missing
hybrid | ssm.conv_kernel=3 | mamba_d_conv | expected 4
hybrid | ssm.group_count=8 | mamba_n_groups | expected 1
hybrid | rope.scaling.finetuned=true | rope.scaling.finetuned | Bamba is a relative of Granite's hybrids
hybrid | rope.scaling.finetuned= | rope.scaling.finetuned | Bamba is a relative of Granite's hybrids
hybrid | rope.scaling.finetuned=1 | rope.scaling.finetuned | true or false
hybrid | rope.dimension_count=0 | rope.dimension_count | cannot be rotated
hybrid | rope.dimension_count=64 | blk.2.attn_q.weight | 256 rows
hybrid | expert_count=8 | expert_used_count | missing
hybrid | logit_scale=true | logit_scale | a finite number
experts | expert_used_count=0 | expert_used_count | is zero
experts | expert_used_count=9 | expert_used_count | 9 is more than expert_count (8)
experts | expert_count=1025 | num_local_experts | to 1024
experts | expert_count= | blk.0.ffn_down_exps.weight | belongs to experts
experts | expert_count=4 | model.layers.0.block_sparse_moe.input_linear.weight | asks for [4, 128, 128]
experts | expert_shared_feed_forward_length=0 | model.layers.0.shared_mlp | is not part of
mixture | expert_count=0 | expert_count | is zero
mixture | expert_count= | expert_count | missing
mixture | expert_used_count= | expert_used_count | missing
mixture | logit_scale= | logit_scale | missing
mixture | rope.scaling.finetuned=false | rope.scaling.finetuned | without rotary positions
mixture | attention.head_count_kv=[2,2,0,2] | attention.head_count_kv | the same in every layer
mixture | attention.head_count_kv=[2,2,2] | attention.head_count_kv | 3 entries for 4 layers
mixture | attention.head_count_kv=3 | attention.head_count_kv | 3 does not divide
mixture | expert_shared_feed_forward_length=96 | model.layers.0.shared_mlp.input_linear.weight | is missing
"#;

/// Makes a change as the table writes it.
fn change(gguf: &mut Gguf, architecture: &str, change: &str) {
    let (name, value) = change.split_once('=').unwrap();
    let key = format!("{architecture}.{name}");
    let number = |text: &str| text.parse::<u32>().unwrap().to_le_bytes().to_vec();
    let list = value
        .strip_prefix('[')
        .and_then(|list| list.strip_suffix(']'));
    match (value, list) {
        ("", _) => gguf.remove(&key),
        ("true", _) => gguf.set(&key, BOOL, vec![1]),
        ("false", _) => gguf.set(&key, BOOL, vec![0]),
        (_, Some(list)) => {
            let numbers: Vec<Vec<u8>> = list.split(',').map(number).collect();
            gguf.set(&key, ARRAY, array(U32, &numbers))
        }
        _ => gguf.set(&key, U32, number(value)),
    };
}

/// Opens a file, and compares its tensors with its configuration as loading does.
fn open_and_check(path: &Path) -> Result<()> {
    let opened = open(path)?;
    let config = ModelConfig::from_json(&opened.config_file, &opened.config)?;
    reference::Reference::load(&config, opened.tensors().unwrap(), Arithmetic::F32)?;
    let settings = model::Settings {
        threads: 1,
        slots: 1,
        snapshots: 0,
        kv_bytes: 4 << 20,
        context: None,
        weights: model::Placement::default(),
    };
    model::load(&opened, &settings, &mut |_, _| ()).map(|_| ())
}

#[test]
fn metadata_of_hybrids_and_mixtures_that_does_not_add_up_is_refused_by_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.gguf");
    let bases = [
        ("hybrid", "granitehybrid", HYBRID),
        ("experts", "granitehybrid", HYBRID_WITH_EXPERTS),
        ("mixture", "granitemoe", MIXTURE),
    ];
    let bases = bases.map(|(base, architecture, name)| {
        let right = gguf(name, |_| GgmlDType::Q8_0);
        right.write(&path);
        open_and_check(&path).unwrap();
        (base, architecture, right)
    });
    for line in OF_HYBRIDS_AND_MIXTURES.trim().lines() {
        let [base, changed, field, problem] = line.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("not four columns: {line}");
        };
        let (_, architecture, right) = bases.iter().find(|(name, ..)| *name == base).unwrap();
        let mut wrong = right.clone();
        change(&mut wrong, architecture, changed);
        wrong.write(&path);
        println!("{line}");
        assert_refused(
            open_and_check(&path),
            BAD_MODEL,
            &["wrong.gguf", field, problem],
        );
    }
}

#[test]
fn a_hybrid_without_any_scale_of_granite_is_called_a_bamba() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.gguf");
    let mut bamba = gguf(HYBRID, |_| GgmlDType::Q8_0);
    for scale in [
        "attention.scale",
        "embedding_scale",
        "logit_scale",
        "residual_scale",
    ] {
        bamba.write(&path);
        open_and_check(&path).unwrap();
        bamba.remove(&format!("granitehybrid.{scale}"));
    }
    bamba.write(&path);
    let parts = [
        "general.architecture",
        "Bamba is a relative",
        "granite-4.0-h-1b",
    ];
    assert_refused(open(&path), BAD_MODEL, &parts);
}

#[test]
fn tensors_of_hybrids_and_mixtures_that_do_not_belong_together_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("wrong.gguf");
    let refused = |base: &str, change: &dyn Fn(&mut Gguf), parts: &[&str]| {
        let mut wrong = gguf(base, |_| GgmlDType::Q8_0);
        change(&mut wrong);
        wrong.write(&path);
        assert_refused(
            open_and_check(&path),
            BAD_MODEL,
            &[&["wrong.gguf"], parts].concat(),
        );
    };
    for (base, name) in [
        (HYBRID, "blk.4.ffn_up.weight"),
        (HYBRID, "blk.4.ffn_gate.weight"),
        (HYBRID_WITH_EXPERTS, "blk.1.ffn_up_shexp.weight"),
        (MIXTURE, "blk.3.ffn_gate_exps.weight"),
    ] {
        let without = |gguf: &mut Gguf| gguf.tensors.retain(|tensor| tensor.name != name);
        refused(base, &without, &[name, "is missing, but there is blk."]);
    }
    let up = "blk.3.ffn_up_exps.weight";
    for dimensions in [
        vec![128, 32, 16],
        vec![128, 512],
        vec![64, 64, 16],
        vec![128 * 512],
    ] {
        let reshape = |gguf: &mut Gguf| gguf.tensor(up).dimensions = dimensions.clone();
        refused(
            MIXTURE,
            &reshape,
            &[up, "but blk.3.ffn_gate_exps.weight has [8, 64, 128]"],
        );
    }
    let add =
        |name: &'static str| move |gguf: &mut Gguf| _ = gguf.add_tensor(name, &[1], 0, vec![0; 4]);
    for (base, name, problem) in [
        (HYBRID, "blk.0.attn_q.weight", "Mamba-2 layer"),
        (HYBRID, "blk.2.ssm_d", "has attention"),
        (HYBRID, "blk.0.ffn_gate_exps.weight", "experts"),
        (HYBRID, "blk.6.ffn_norm.weight", "number of layers"),
        (HYBRID_WITH_EXPERTS, "blk.0.ffn_gate.weight", "not a tensor"),
        (HYBRID, "blk.0.ssm_in.bias", "biases"),
        (MIXTURE, "blk.0.attn_q.bias", "biases"),
    ] {
        refused(base, &add(name), &[name, problem]);
    }
    let short = |gguf: &mut Gguf| gguf.tensor("blk.0.ssm_conv1d.weight").dimensions = vec![2, 1024];
    refused(
        HYBRID,
        &short,
        &["mamba.conv1d.weight", "[1024, 1, 2]", "[512, 1, 4]"],
    );
    let none = |gguf: &mut Gguf| {
        gguf.tensors
            .retain(|tensor| !tensor.name.ends_with("ssm_a"))
    };
    refused(HYBRID, &none, &["model.layers.0.mamba.A_log", "is missing"]);
}
