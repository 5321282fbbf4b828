//! Formats numbers with a given number of significant digits, so that a small divergence is not shown as zeros.

/// `value` to `digits` significant digits; with an exponent below a thousandth and from a million on.
pub fn significant(value: f64, digits: usize) -> String {
    if value == 0.0 {
        return "0".into();
    }
    let magnitude = value.abs().log10().floor();
    if !(-3.0..6.0).contains(&magnitude) {
        let most = digits.saturating_sub(1);
        return format!("{value:.most$e}");
    }
    let decimals = (digits as f64 - 1.0 - magnitude).max(0.0) as usize;
    format!("{value:.decimals$}")
}

/// `value ± error`, the error to one digit less, and without an exponent if the value has none.
pub fn with_error(value: f64, error: f64, digits: usize) -> String {
    let value = significant(value, digits);
    let digits = digits.saturating_sub(1).max(1);
    let decimals = digits as f64 - 1.0 - error.abs().log10().floor();
    // An error that needs more decimals is negligible beside such a value.
    let error = match value.contains('e') || !(0.0..=7.0).contains(&decimals) {
        true => significant(error, digits),
        false => format!("{error:.*}", decimals as usize),
    };
    format!("{value} ± {error}")
}

/// A share and its error as percentages, to hundredths.
pub fn percent(value: f64, error: f64) -> String {
    format!("{:.2} ± {:.2} %", 100.0 * value, 100.0 * error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_significant_whatever_the_size() {
        for (value, expected) in [
            (0.0, "0"),
            (0.004_283, "0.00428"),
            (0.000_428_3, "4.28e-4"),
            (1.2e-9, "1.20e-9"),
            (26.534, "26.5"),
            (1_234.5, "1234"),
            (7_654_321.0, "7.65e6"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(significant(value, 3), expected);
        }
        for (value, error, digits, expected) in [
            (0.004_283, 0.000_16, 3, "0.00428 ± 0.00016"),
            (4.28e-7, 1.6e-8, 3, "4.28e-7 ± 1.6e-8"),
            (29.108, 2.433, 5, "29.108 ± 2.433"),
            (1_234.5, 210.0, 5, "1234.5 ± 210.0"),
            (0.5, 0.0, 3, "0.500 ± 0"),
        ] {
            assert_eq!(with_error(value, error, digits), expected);
        }
        assert_eq!(percent(0.951_1, 0.006_8), "95.11 ± 0.68 %");
    }
}
