//! A folder that version 0.1.0 packed before models could have Mamba-2 layers and experts. Its format has the same number,
//! so it must load, and answer as what is packed now.

use microgranite::int8::kernels::pool::Pool;
use microgranite::int8::scheme::{Granularity, Mapping};
use microgranite::model::{Placement, packed};
use microgranite::sources::packed::WEIGHTS;

use crate::{fixture, load, open, pack};

const EARLIER: &str = "granite-4.2-tiny-packed";

#[test]
fn what_an_earlier_version_packed_loads_and_is_what_is_packed_now() {
    let earlier = fixture(EARLIER);
    let checkpoint = open(&earlier);
    let record = checkpoint.packed().unwrap();
    packed::verify(record, &mut Pool::new(2).unwrap(), &mut |_, _| ()).unwrap();
    let scheme = packed::Quantization::of(record).unwrap().scheme;
    // All kinds of tensors that a matrix can have.
    assert_eq!(scheme.mapping, Mapping::Affine);
    assert_eq!(scheme.granularity, Granularity::Group);
    let now = pack("granite-4.2-tiny", &scheme);
    let read = |folder: &std::path::Path| std::fs::read(folder.join(WEIGHTS)).unwrap();
    assert!(read(&earlier) == read(now.path()), "the files differ");

    let ids: Vec<u32> = (0..70).map(|i| (i * i * 7 + 3) % 320).collect();
    let mut in_memory = load(&open(now.path()), Placement::Copy);
    let expected = in_memory.logits(&ids).to_vec();
    for placement in [Placement::Mmap, Placement::Copy] {
        let mut model = load(&checkpoint, placement);
        assert!(model.logits(&ids) == expected, "{placement:?}");
    }
}
