//! The tile instructions as Intel's manual defines them, in plain code, with every condition under which a processor would
//! refuse one.

use super::{Kernel, Shapes, Tile, Tiles, avx512_vnni, tile_with};

/// The kernel over the model, if this CPU has the rest of what it needs.
pub(in super::super) fn kernel() -> Option<Kernel> {
    let kernel = Kernel {
        name: "model of amx-int8",
        tile,
        ..avx512_vnni::CANDIDATE.kernel
    };
    avx512_vnni::CANDIDATE
        .missing()
        .is_empty()
        .then_some(kernel)
}

/// # Safety
/// `tile` was checked by [`Kernel::tile`], and the CPU has AVX-512 with VNNI.
unsafe fn tile(t: &Tile) {
    // SAFETY: guaranteed by the caller.
    unsafe { tile_with(&mut Model::default(), t) }
}

/// The eight registers.
#[derive(Default)]
struct Model {
    /// `None` before a configuration and after a release.
    shapes: Option<Shapes>,
    registers: [Vec<Vec<u8>>; 8],
}

impl Model {
    /// The rows of a register, and the bytes in each.
    fn shape(&self, register: u8) -> (usize, usize) {
        let shapes = self.shapes.expect("registers are configured");
        let register = usize::from(register);
        (
            shapes.rows[register].into(),
            shapes.row_bytes[register].into(),
        )
    }
}

impl Tiles for Model {
    unsafe fn configure(&mut self, shapes: &Shapes) {
        assert_eq!((shapes.palette, shapes.start_row), (1, 0));
        assert_eq!(std::ptr::from_ref(shapes).addr() % 64, 0);
        assert!(shapes.reserved.iter().all(|&byte| byte == 0));
        assert!(shapes.rows.iter().all(|&rows| rows <= 16));
        assert!(shapes.row_bytes.iter().all(|&bytes| bytes <= 64));
        assert!(shapes.rows[8..].iter().all(|&rows| rows == 0));
        assert!(shapes.row_bytes[8..].iter().all(|&bytes| bytes == 0));
        self.shapes = Some(*shapes);
        for register in 0..8 {
            let (rows, bytes) = self.shape(register);
            assert!(rows > 0 && bytes > 0);
            self.registers[usize::from(register)] = vec![vec![0; bytes]; rows];
        }
    }

    unsafe fn load<const REGISTER: u8>(&mut self, from: *const u8, stride: usize) {
        let (_, bytes) = self.shape(REGISTER);
        for (row, to) in self.registers[usize::from(REGISTER)].iter_mut().enumerate() {
            // SAFETY: guaranteed by the caller.
            let from = unsafe { std::slice::from_raw_parts(from.add(row * stride), bytes) };
            to.copy_from_slice(from);
        }
    }

    unsafe fn add_products<const SUMS: u8, const A: u8, const B: u8>(&mut self) {
        assert!(SUMS != A && A != B && SUMS != B);
        let (sums, a, b) = (self.shape(SUMS), self.shape(A), self.shape(B));
        assert!(a.1 % 4 == 0 && b.1 % 4 == 0);
        assert_eq!((sums.0, sums.1, a.1 / 4), (a.0, b.1, b.0));
        let [a, b] = [A, B].map(|register| self.registers[usize::from(register)].clone());
        for (sums, a) in self.registers[usize::from(SUMS)].iter_mut().zip(&a) {
            for (a, b) in a.chunks_exact(4).zip(&b) {
                for (sum, b) in sums
                    .as_chunks_mut::<4>()
                    .0
                    .iter_mut()
                    .zip(b.chunks_exact(4))
                {
                    let products = a
                        .iter()
                        .zip(b)
                        .map(|(&a, &b)| i32::from(a as i8) * i32::from(b));
                    *sum = (i32::from_le_bytes(*sum) + products.sum::<i32>()).to_le_bytes();
                }
            }
        }
    }

    unsafe fn store<const REGISTER: u8>(&mut self, to: *mut i32, stride: usize) {
        for (row, from) in self.registers[usize::from(REGISTER)].iter().enumerate() {
            // SAFETY: guaranteed by the caller.
            unsafe {
                let to = to.cast::<u8>().add(row * stride);
                to.copy_from_nonoverlapping(from.as_ptr(), from.len());
            }
        }
    }

    unsafe fn release(&mut self) {
        self.shapes = None;
    }
}
