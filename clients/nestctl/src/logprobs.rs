//! How likely the tokens of an answer were, as a table. `ask` prints it.

use nestd_client::v1::{Logprob, TokenLogprobs};

use crate::render;

/// A line for each token: what was drawn, and the others that might have stood there.
pub fn table(tokens: &[TokenLogprobs]) -> String {
    let heading = ["token", "probability", "log", "others"].map(str::to_owned).to_vec();
    let rows = tokens.iter().filter_map(|drawn| {
        let token = drawn.token.as_ref()?;
        let others = drawn.top.iter().filter(|other| other.id != token.id);
        let others: Vec<_> =
            others.map(|other| format!("{} {}", quoted(other), percent(other))).collect();
        let log = format!("{:.4}", token.logprob);
        Some(vec![quoted(token), percent(token), log, others.join(", ")])
    });
    render::table(&std::iter::once(heading).chain(rows).collect::<Vec<_>>())
}

/// In quotes, so that spaces and ends of lines are seen.
fn quoted(token: &Logprob) -> String {
    format!("{:?}", token.text)
}

fn percent(token: &Logprob) -> String {
    let percent = 100.0 * token.logprob.exp();
    if percent < 0.01 { "<0.01 %".into() } else { format!("{percent:.2} %") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_line_a_token() {
        let one = |id, text: &str, logprob| Logprob { id, text: text.into(), logprob };
        let the = one(5, "The", -0.002);
        let tokens = [
            TokenLogprobs { token: Some(the.clone()), top: vec![the, one(9, "A\n", -6.5)] },
            TokenLogprobs { token: Some(one(7, " cat", -1.0)), top: vec![one(8, "x", -20.0)] },
        ];
        let wanted = "\
token   probability  log      others
\"The\"   99.80 %      -0.0020  \"A\\n\" 0.15 %
\" cat\"  36.79 %      -1.0000  \"x\" <0.01 %
";
        assert_eq!(table(&tokens), wanted);
    }
}
