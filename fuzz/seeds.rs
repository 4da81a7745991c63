//! Writes the seeds into `corpus/`, a folder for each target. Without libFuzzer: `cargo run --bin seeds`.

use std::fs;

fn main() -> std::io::Result<()> {
    for (index, (target, seed)) in nestd_elastic::fuzzing::seeds().into_iter().enumerate() {
        let folder = format!("corpus/{target}");
        fs::create_dir_all(&folder)?;
        fs::write(format!("{folder}/seed-{index}"), seed)?;
    }
    Ok(())
}
