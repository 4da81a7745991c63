//! A conversation as JSON: `[{"role": "user", "content": "…"}]`. Files of questions and exported sessions
//! are made of it.

use nestd_client::{
    message,
    v1::{Message, Role, part::Kind},
};
use serde::{Deserialize, Serialize};

/// One turn, as a text.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    pub role: Speaker,
    pub content: String,
}

/// Who speaks.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    System,
    User,
    Assistant,
}

impl Speaker {
    /// The name in JSON, and for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl From<Turn> for Message {
    fn from(turn: Turn) -> Self {
        let role = match turn.role {
            Speaker::System => Role::System,
            Speaker::User => Role::User,
            Speaker::Assistant => Role::Assistant,
        };
        message(role, turn.content)
    }
}

impl From<&Message> for Turn {
    /// Texts are joined, as a model's template does it.
    fn from(message: &Message) -> Self {
        let role = match message.role() {
            Role::System => Speaker::System,
            Role::Assistant => Speaker::Assistant,
            Role::User | Role::Tool | Role::Unspecified => Speaker::User,
        };
        let text = |kind: &Kind| match kind {
            Kind::Text(text) => Some(text.clone()),
            _ => None,
        };
        let parts = message.parts.iter();
        let texts = parts.filter_map(|part| part.kind.as_ref().and_then(text));
        Self { role, content: texts.collect() }
    }
}
