//! Prompts of about so many tokens: random words, as many as the loaded model needs for them.

use nestd_client::v1::Role;
use nestd_client::{Client, Error, message};

use super::super::random::Random;

/// Short words that a vocabulary of any size knows.
const WORDS: [&str; 32] = [
    "the", "of", "and", "to", "in", "is", "you", "that", "it", "he", "was", "for", "on", "are",
    "as", "with", "his", "they", "at", "be", "this", "have", "from", "or", "one", "had", "by",
    "not", "what", "all", "were", "we",
];
/// Words that are counted to know how many tokens one has.
const SAMPLE: u32 = 256;

/// How many tokens words take.
#[derive(Clone, Copy)]
pub struct Prompts {
    /// Of a prompt without words: the template.
    around: f64,
    word: f64,
}

impl Prompts {
    /// Asks the daemon, again while the model is being loaded.
    pub async fn learn(client: &Client, random: &mut Random) -> Result<Self, Error> {
        let one = count(client, words(1, random)).await?;
        let many = count(client, words(1 + SAMPLE, random)).await?;
        let word = ((many - one) / f64::from(SAMPLE)).max(0.1);
        Ok(Self { around: one - word, word })
    }

    /// A prompt of about so many tokens.
    pub fn of(self, tokens: u32, random: &mut Random) -> String {
        let count = ((f64::from(tokens) - self.around) / self.word).round().max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is 1 or more"
        )]
        words(count as u32, random)
    }
}

async fn count(client: &Client, text: String) -> Result<f64, Error> {
    loop {
        match client.count_tokens(vec![message(Role::User, text.clone())]).await {
            Ok(tokens) => return Ok(tokens.into()),
            Err(error) => match super::client::pause_after(&error) {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
        }
    }
}

fn words(count: u32, random: &mut Random) -> String {
    let mut text = String::new();
    for _ in 0..count {
        if !text.is_empty() {
            text.push(' ');
        }
        let word = usize::try_from(random.next()).unwrap_or(0) % WORDS.len();
        text.push_str(WORDS.get(word).copied().unwrap_or_default());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_has_about_as_many_tokens() {
        let prompts = Prompts { around: 8.5, word: 1.25 };
        let mut random = Random::new(1);
        let count = |text: String| text.split(' ').count();
        assert_eq!(count(prompts.of(108, &mut random)), 80);
        assert_eq!(count(prompts.of(1, &mut random)), 1);
        assert_ne!(prompts.of(50, &mut random), prompts.of(50, &mut random));
    }
}
