//! The `microgranite` binary.
use clap::Parser;
#[derive(Parser)]
enum C {
    Bench(microgranite::cli::bench::Args),
}
fn main() {
    let C::Bench(args) = C::parse();
    let s = microgranite::sources::Settings::from_variables(|_| None, false);
    if let Err(e) = microgranite::cli::bench::run(&args, &s) {
        eprintln!("error: {e}");
    }
}
