//! `nestctl models`, `load`, `size` and `unload`.

use std::fmt::Write as _;

use futures::StreamExt;
use nestd_client::{
    Client,
    v1::{Model, Size},
};
use serde_json::json;

use crate::{json, problem::Problem, render, render::Screen};

/// Lists the models.
pub async fn models(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    let models = client.models().await?;
    if screen.json {
        screen.value(&models.iter().map(json::model).collect())?;
    } else if models.is_empty() {
        screen.note("There are no models in the daemon's folder.");
    } else {
        screen.text(&table(&models))?;
    }
    Ok(())
}

/// Loads a model at a size; empty is what the daemon takes for each. Says at the end what is loaded.
pub async fn load(
    client: &Client,
    model: &str,
    size: &str,
    screen: &mut Screen,
) -> Result<(), Problem> {
    let mut fractions = client.load(model, size).await?;
    let mut shown = None;
    while let Some(fraction) = fractions.next().await {
        let fraction = fraction?;
        if screen.json {
            screen.value(&json!({ "fraction": fraction }))?;
        } else if screen.shows_progress() {
            screen.progress(&format!("loading {}", render::bar(fraction)));
        } else {
            // A line for each tenth is enough for a log.
            let tenth = format!("loading: {:.0} %", (fraction * 10.0).floor() * 10.0);
            if shown.as_ref() != Some(&tenth) {
                screen.note(&tenth);
                shown = Some(tenth);
            }
        }
    }
    if !screen.json {
        let report = client.status().await?;
        screen.line(&format!("{} at size {} is loaded", report.model, report.active_size))?;
    }
    Ok(())
}

/// Gives the model's memory back.
pub async fn unload(client: &Client, screen: &mut Screen) -> Result<(), Problem> {
    screen.progress("waiting for running requests to end");
    client.unload().await?;
    if screen.json {
        screen.value(&json!({}))?;
    } else {
        screen.line("no model is loaded")?;
    }
    Ok(())
}

fn table(models: &[Model]) -> String {
    let heading = ["MODEL", "ENGINE", "CONTEXT", "SIZE", "PARAMETERS", "MEMORY"];
    let mut rows = vec![heading.map(String::from).to_vec()];
    for model in models {
        let name =
            if model.loaded { format!("{} (loaded)", model.name) } else { model.name.clone() };
        if !model.problem.is_empty() {
            rows.push(vec![name, "-".into(), "-".into(), "-".into(), "-".into(), "-".into()]);
            continue;
        }
        let mut columns = vec![name, model.engine.clone(), model.context_tokens.to_string()];
        for size in &model.sizes {
            columns.extend([
                size.name.clone(),
                parameters(size),
                format!("{} MiB", size.memory_mib),
            ]);
            rows.push(std::mem::replace(&mut columns, vec![String::new(); 3]));
        }
    }
    let mut text = render::table(&rows);
    for model in models.iter().filter(|model| !model.problem.is_empty()) {
        let _ = writeln!(text, "{} cannot be loaded: {}", model.name, model.problem);
    }
    text
}

fn parameters(size: &Size) -> String {
    let billions = size.effective_params_b;
    if billions >= 0.1 { format!("{billions:.2} B") } else { format!("{:.2} M", billions * 1000.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_has_a_row_and_a_problem_its_sentence() {
        let size = |name: &str, effective_params_b, memory_mib| Size {
            name: name.into(),
            effective_params_b,
            memory_mib,
        };
        let good = Model {
            name: "demo".into(),
            engine: "sim".into(),
            sizes: vec![size("large", 3.98, 8000), size("small", 0.0042, 40)],
            context_tokens: 8192,
            loaded: true,
            problem: String::new(),
        };
        let bad = Model { name: "odd".into(), problem: "no weights".into(), ..Model::default() };
        assert_eq!(
            table(&[good, bad]),
            "\
MODEL          ENGINE  CONTEXT  SIZE   PARAMETERS  MEMORY
demo (loaded)  sim     8192     large  3.98 B      8000 MiB
                                small  4.20 M      40 MiB
odd            -       -        -      -           -
odd cannot be loaded: no weights
"
        );
    }
}
