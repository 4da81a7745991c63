//! Writes the seeds into `corpus/`, a folder for each target.

use std::fs;

use nestd_policy::settings::PROFILES;

fn main() -> std::io::Result<()> {
    let mut seeds = nestd_elastic::fuzzing::seeds();
    seeds.extend(nestd::fuzzing::seeds());
    seeds.extend(nestd_client::fuzzing::seeds());
    seeds.extend(PROFILES.map(|(_, text)| ("profile", text.as_bytes().to_vec())));
    let day = include_str!("../tests/data/day.csv");
    seeds.push(("trace", day.split_inclusive('\n').take(12).collect::<String>().into()));
    for (index, (target, seed)) in seeds.into_iter().enumerate() {
        let folder = format!("corpus/{target}");
        fs::create_dir_all(&folder)?;
        fs::write(format!("{folder}/seed-{index}"), seed)?;
    }
    Ok(())
}
