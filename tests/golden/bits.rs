//! The int8 model's logits as digests: every instruction set, and every kind of processor, computes the same bits.

use std::fmt::Write;

use microgranite::model;
use microgranite::sources;
use sha2::{Digest, Sha256};

use crate::{checkpoint, settings, test_file};

/// The first eight bytes of the SHA-256 of all logits of [`ids`], as little-endian floats. A change of the arithmetic changes
/// them; then the failed assertion shows the new ones, and the ones here have to be the same on every processor again.
const RECORDED: [(&str, &str); 8] = [
    ("granite-3-tiny", "1db651ee6d56e7c0"),
    ("granite-4-dense-tiny", "3654b612e0239330"),
    ("granite-3-moe-tiny", "361d9387769e49b0"),
    ("granite-moe-shared-tiny", "7972a9f564a1eb2f"),
    ("granite-4-hybrid-tiny", "30e9ebdb1ec300ac"),
    ("granite-4-hybrid-moe-tiny", "e569dc51cbed6a95"),
    // Codes from the file instead of codes of our own, and a packed folder.
    ("granite-4-dense-tiny-w8a8-zp", "c09cbb4eaaccec06"),
    ("granite-4.2-tiny-packed", "15ac5fb5eb0132af"),
];

/// More than a page of the KV cache and more rows than any kernel takes at once.
fn ids() -> Vec<u32> {
    (0..150).map(|i| (i * i * 7 + i * 5 + 3) % 320).collect()
}

#[test]
fn int8_logits_have_the_recorded_bits() {
    let found = RECORDED.map(|(fixture, _)| {
        let folder = test_file("fixtures").join(fixture);
        let checkpoint = checkpoint(&sources::Reference::Folder(folder));
        let mut model = model::load(&checkpoint, &settings(), &mut |_, _| ()).expect("it loads");
        let logits = model.logits(&ids());
        assert_eq!(logits.len(), 150 * 320);
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        let mut digest = String::new();
        for byte in &Sha256::digest(bytes)[..8] {
            write!(digest, "{byte:02x}").expect("a string takes everything");
        }
        (fixture, digest)
    });
    let found = found
        .each_ref()
        .map(|(fixture, digest)| (*fixture, digest.as_str()));
    assert_eq!(found, RECORDED);
}
