//! A chat as one prompt, by the template that a model's file has.
//!
//! A user's text must not steer the model: `<end_of_turn>` in it is text, in the template it is a token.
//! Marks around the texts would not do, since templates trim and join texts, and since a merge may reach
//! over the border. So the chat is rendered twice, once with every character of the texts replaced by
//! another of the same length; a control token counts where both renderings have it.

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};

use minijinja::value::Value;
use minijinja::{ErrorKind, context};

use super::guard::{self, Guard, Refused};
use super::jinja::{self, RAISED};
use super::tokenizer::{Kind, Special, Tokenizer, spaced};

/// Gemma's format, for files that have no template.
const GEMMA: &str = "\
{{ bos_token }}
{%- set ns = namespace(head='') -%}
{%- for message in messages -%}
    {%- if message.role == 'system' or message.role == 'developer' -%}
        {%- set ns.head = ns.head ~ (message.content | trim) ~ '\\n\\n' -%}
    {%- else -%}
        {{ '<start_of_turn>' ~ ('model' if message.role == 'assistant' else message.role) ~ '\\n' }}
        {{- ns.head ~ (message.content | trim) ~ '<end_of_turn>\\n' -}}
        {%- set ns.head = '' -%}
    {%- endif -%}
{%- endfor -%}
{{ '<start_of_turn>model\\n' if add_generation_prompt }}";

/// Bytes that a template may add to each turn, and to the whole.
const ADDED: usize = 64 * 1024;

/// One turn of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn<'a> {
    /// `system`, `user`, `assistant` or what else the template knows; letters, digits, `_` and `-`.
    pub role: &'a str,
    /// What was said.
    pub text: &'a str,
}

/// Why there is no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The template has what none needs.
    #[error("the chat template is refused: {0}")]
    Refused(#[from] Refused),
    /// The template is wrong.
    #[error("the chat template is broken: {0}")]
    Broken(String),
    /// The template failed with this chat.
    #[error("the chat template failed: {0}")]
    Failed(String),
    /// The template does not take this chat, and says why.
    #[error("the model's chat template does not take this chat: {0}")]
    Raised(String),
    /// A role that could be more than a name.
    #[error("{0:?} is no role")]
    Role(String),
    /// A text has a control token in it or the template may make one of it, and which is which cannot be
    /// told.
    #[error("a text contains or becomes a control token of the model")]
    Forged,
}

/// The chat template of one model.
pub struct Template {
    /// With checks put in.
    source: String,
    bos: String,
    eos: String,
}

impl Template {
    /// Reads a template; `bos` and `eos` are what it knows as `bos_token` and `eos_token`.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<Self, Error> {
        let template = Self { source: guard::guarded(source)?, bos: bos.into(), eos: eos.into() };
        caught(|| {
            let parsed = jinja::environment().template_from_str(&template.source).map(drop);
            parsed.map_err(|error| Error::Broken(error.to_string()))
        })?;
        Ok(template)
    }

    /// Gemma's turns, for a file without a template.
    pub fn gemma(bos: &str, eos: &str) -> Result<Self, Error> {
        Self::new(GEMMA, bos, eos)
    }

    /// The chat as text, all in one: control tokens in the texts look like those of the template.
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, Error> {
        for turn in turns {
            let part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
            if turn.role.is_empty() || !turn.role.bytes().all(part) {
                return Err(Error::Role(turn.role.to_owned()));
            }
        }
        let texts: usize = turns.iter().map(|turn| turn.text.len()).sum();
        let messages: Vec<Value> =
            turns.iter().map(|turn| context! { role => turn.role, content => turn.text }).collect();
        let guard = Guard::new(texts.saturating_add(turns.len() * 64));
        let most = texts.saturating_mul(4).saturating_add((turns.len() + 1) * ADDED);
        let mut out = Limited { text: Vec::new(), left: most };
        let mut context = std::collections::BTreeMap::from([
            ("messages", Value::from(messages)),
            ("add_generation_prompt", add_generation_prompt.into()),
            ("bos_token", self.bos.as_str().into()),
            ("eos_token", self.eos.as_str().into()),
        ]);
        context.insert(guard::NAME, Value::from_dyn_object(guard));
        caught(|| {
            let env = jinja::environment();
            env.template_from_str(&self.source)
                .and_then(|template| template.render_captured_to(context, &mut out).map(drop))
                .map_err(|error| failed(&error))
        })?;
        String::from_utf8(out.text).map_err(|error| Error::Failed(error.to_string()))
    }

    /// The prompt that asks for the next answer. Control tokens in the texts are text; exactly one token
    /// begins it, if the vocabulary has such a token.
    pub fn encode_chat(&self, tokenizer: &Tokenizer, turns: &[Turn]) -> Result<Vec<u32>, Error> {
        let prompt = spaced(&self.render(turns, true)?);
        let masked: Vec<String> = turns.iter().map(|turn| masked(turn.text)).collect();
        let hidden: Vec<Turn> =
            turns.iter().zip(&masked).map(|(turn, text)| Turn { role: turn.role, text }).collect();
        let hidden = self.render(&hidden, true).map(|prompt| spaced(&prompt));
        let tokens = match hidden {
            Ok(hidden) if hidden.len() == prompt.len() => tokenizer.encode_spaced(&prompt, |at| {
                let both = (prompt.get(at.clone()), hidden.get(at));
                matches!(both, (Some(shown), Some(hidden)) if shown == hidden)
            }),
            // The template looks into the texts. With nothing to be forged there, it may; but what it
            // changes there (it leaves characters out, or writes them small) may become a control token,
            // so these must be those that it has by itself.
            Ok(hidden) if turns.iter().all(|turn| harmless(tokenizer, turn.text)) => {
                let tokens = tokenizer.encode_spaced(&prompt, |_| true);
                let own = tokenizer.encode_spaced(&hidden, |_| true);
                let control = |id: &&u32| tokenizer.kind(**id) == Some(Kind::Control);
                if !tokens.iter().filter(control).eq(own.iter().filter(control)) {
                    return Err(Error::Forged);
                }
                tokens
            }
            _ => return Err(Error::Forged),
        };
        let Some(bos) = tokenizer.bos() else { return Ok(tokens) };
        let own = tokens.iter().take_while(|id| **id == bos).count();
        let mut all = vec![bos];
        all.extend_from_slice(tokens.get(own..).unwrap_or_default());
        Ok(all)
    }
}

/// Takes so many bytes and no more.
struct Limited {
    text: Vec<u8>,
    left: usize,
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len()).ok_or_else(|| {
            std::io::Error::other("the template makes more text than a chat needs")
        })?;
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs the library, which panics at some templates (`{{ ''[::-1] }}`): that would end the engine's
/// thread, and so the daemon. All that it works on is dropped, so nothing is left half changed.
fn caught<T>(run: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|_| Err(Error::Failed("the template library panicked".into())))
}

fn failed(error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        let own = error.downcast_ref::<minijinja::Error>();
        if let Some(why) = own.and_then(|own| own.detail()?.strip_prefix(RAISED)) {
            return Error::Raised(why.to_owned());
        }
        cause = error.source();
    }
    match error.kind() {
        ErrorKind::SyntaxError => Error::Broken(error.to_string()),
        _ => Error::Failed(error.to_string()),
    }
}

/// The text with characters that no token has, white space as it was.
fn masked(text: &str) -> String {
    let mask = |c: char| match c.len_utf8() {
        _ if c.is_whitespace() => c,
        1 => '\u{1}',
        2 => '\u{80}',
        3 => '\u{e000}',
        _ => '\u{f0000}',
    };
    text.chars().map(mask).collect()
}

/// Whether a text has no control token in it.
fn harmless(tokenizer: &Tokenizer, text: &str) -> bool {
    tokenizer.encode(text, Special::Parse) == tokenizer.encode(text, Special::Text)
}
