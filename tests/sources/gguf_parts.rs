//! GGUF files in several parts.

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use microgranite::error::Error;
use microgranite::sources::{self, Checkpoint, Reference};

use crate::gguf_granite::{granite, tensor};
use crate::gguf_writer::Gguf;
use crate::{assert_refused, offline};

/// The files of `whole` in parts, of which the first one has `first` tensors and the others share the rest.
pub fn split(whole: &Gguf, count: usize, first: usize) -> Vec<Gguf> {
    let (head, rest) = whole.tensors.split_at(first);
    let each = rest.len().div_ceil(count - 1);
    let mut tensors = vec![head.to_vec()];
    tensors.extend(rest.chunks(each).map(<[_]>::to_vec));
    assert_eq!(tensors.len(), count);
    let parts = tensors.into_iter().enumerate().map(|(number, tensors)| {
        let mut part = match number {
            0 => whole.clone(),
            _ => Gguf::new(),
        };
        part.tensors = tensors;
        part.set_u32("split.no", number as u32);
        part.set_u32("split.count", count as u32);
        part.set_u32("split.tensors.count", whole.tensors.len() as u32);
        part
    });
    parts.collect()
}

/// The name of part `number` (from 1 on) of `count`.
pub fn name(model: &str, number: usize, count: usize) -> String {
    format!("{model}-{number:05}-of-{count:05}.gguf")
}

/// Writes the small Granite in three parts, after a change to them, and returns their paths.
fn write(folder: &Path, change: impl FnOnce(&mut Vec<Gguf>)) -> Vec<PathBuf> {
    let mut parts = split(&granite(GgmlDType::F32), 3, 4);
    change(&mut parts);
    let write = |(at, part): (usize, &Gguf)| {
        let path = folder.join(name("tiny", at + 1, 3));
        part.write(&path);
        path
    };
    parts.iter().enumerate().map(write).collect()
}

fn open(path: &Path) -> Result<Checkpoint, Error> {
    let reference = path.to_str().unwrap().parse::<Reference>().unwrap();
    sources::open(&reference, &offline())
}

fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let values = tensor(checkpoint, name).flatten_all().unwrap();
    values.to_vec1().unwrap()
}

#[test]
fn parts_have_the_tensors_of_the_whole_whichever_of_them_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole.gguf");
    granite(GgmlDType::F32).write(&whole);
    let whole = open(&whole).unwrap();
    for first in [4, 0] {
        let folder = tempfile::tempdir().unwrap();
        let parts = write(folder.path(), |parts| {
            *parts = split(&granite(GgmlDType::F32), 3, first);
        });
        for path in [&parts[0], &parts[1], &folder.path().to_path_buf()] {
            let opened = open(path).unwrap();
            assert_eq!(opened.name, "tiny");
            assert_eq!(opened.config, whole.config);
            assert_eq!(opened.config_file, parts[0]);
            assert_eq!(
                opened.tensors().unwrap().names(),
                whole.tensors().unwrap().names()
            );
            assert_eq!(
                opened.tensors().unwrap().stored_bytes(),
                whole.tensors().unwrap().stored_bytes()
            );
            for name in whole.tensors().unwrap().names() {
                assert!(values(&opened, &name) == values(&whole, &name), "{name}");
            }
            assert_eq!(
                opened
                    .tensors()
                    .unwrap()
                    .file("model.layers.1.mlp.down_proj.weight"),
                parts[2]
            );
        }
    }
}

#[test]
fn a_part_that_is_missing_is_named() {
    for (missing, number) in [(0, "part 1"), (1, "part 2"), (2, "part 3")] {
        let folder = tempfile::tempdir().unwrap();
        let parts = write(folder.path(), |_| {});
        std::fs::remove_file(&parts[missing]).unwrap();
        let left = &parts[(missing + 1) % 3];
        for path in [left, &folder.path().to_path_buf()] {
            let file = name("tiny", missing + 1, 3);
            assert_refused(open(path), 66, &[&file, number, "missing"]);
        }
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    type Change = fn(&mut Vec<Gguf>);
    let cases: [(Change, usize, &[&str]); 10] = [
        (
            |parts| _ = parts[0].set_u32("split.count", 2),
            1,
            &["split.count", "2 where"],
        ),
        (
            |parts| _ = parts[1].set_u32("split.count", 4),
            2,
            &["split.count", "4 where"],
        ),
        (
            |parts| _ = parts[2].remove("split.count"),
            3,
            &["split.count", "1 where"],
        ),
        (
            |parts| _ = parts[1].set_u32("split.no", 2),
            2,
            &["split.no", "2 where"],
        ),
        (
            |parts| _ = parts[1].remove("split.no"),
            2,
            &["split.no", "missing"],
        ),
        (|parts| parts.swap(1, 2), 2, &["split.no", "2 where"]),
        (
            |parts| _ = parts[2].set_u32("split.tensors.count", 19),
            3,
            &["split.tensors.count", "19 where the first part has 20"],
        ),
        (
            |parts| _ = parts[0].remove("split.tensors.count"),
            1,
            &["split.tensors.count", "missing"],
        ),
        (
            |parts| _ = parts[2].tensors.pop(),
            1,
            &["split.tensors.count", "20, but", "19"],
        ),
        (
            |parts| parts[2].tensors[0] = parts[1].tensors[0].clone(),
            3,
            &["earlier part", "another model"],
        ),
    ];
    for (change, number, problem) in cases {
        let folder = tempfile::tempdir().unwrap();
        let parts = write(folder.path(), change);
        let file = name("tiny", number, 3);
        let mut expected = vec![file.as_str()];
        expected.extend(problem);
        assert_refused(open(&parts[0]), 65, &expected);
    }
    // A part under another name is not taken for the whole.
    let folder = tempfile::tempdir().unwrap();
    let parts = write(folder.path(), |_| {});
    let alone = folder.path().join("alone.gguf");
    std::fs::rename(&parts[0], &alone).unwrap();
    assert_refused(
        open(&alone),
        65,
        &["split.count", "3 parts", "-00001-of-00003.gguf"],
    );
}

#[test]
fn a_folder_with_several_models_is_not_decided_for_the_user() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), |_| {});
    granite(GgmlDType::Q8_0).write(&folder.path().join("other.gguf"));
    assert_refused(
        open(folder.path()),
        66,
        &["config.json", "name it", ".gguf"],
    );
}
