//! Rotary position embedding: half-split over the whole head, as in the checkpoints' own layout.

/// The frequencies of one model.
pub struct Rotary {
    /// `theta^(−2i/d)` for i below d/2, in f32 as the published model computes them.
    inverse_frequencies: Vec<f32>,
}

impl Rotary {
    /// Computes the frequencies for heads of `head_dim` values.
    pub fn new(head_dim: usize, theta: f64) -> Self {
        let frequency = |i: usize| (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)) as f32;
        Self {
            inverse_frequencies: (0..head_dim / 2).map(frequency).collect(),
        }
    }

    /// Writes the cosines, then the sines of `position` to `table` (`[head_dim]`).
    pub fn fill(&self, position: usize, table: &mut [f32]) {
        let (cosines, sines) = table.split_at_mut(self.inverse_frequencies.len());
        for ((frequency, cosine), sine) in self.inverse_frequencies.iter().zip(cosines).zip(sines) {
            // The angle is rounded to f32, as in the published model; its sine and cosine are then computed in f64.
            let angle = f64::from(position as f32 * frequency);
            (*sine, *cosine) = (angle.sin() as f32, angle.cos() as f32);
        }
    }
}
