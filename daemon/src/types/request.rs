//! A request for text, with the checks that hold whatever transport it came by.

use super::Error;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions; only as the first message.
    System,
    /// The person, or the program that asks.
    User,
    /// An earlier answer of the model.
    Assistant,
}

impl Role {
    /// The name on D-Bus and in chat templates.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order; at least one.
    pub parts: Vec<Part>,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// UTF-8 text.
    Text(String),
}

impl Message {
    /// Whether an answer may follow.
    #[must_use]
    pub fn is_question(&self) -> bool {
        self.role == Role::User
    }

    /// The message's text parts, joined as they are.
    #[must_use]
    pub fn text(&self) -> String {
        self.parts.iter().map(|Part::Text(text)| text.as_str()).collect()
    }
}

/// How tokens are drawn; `None` is the model's own default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sampling {
    /// 0 (greedy) to 2.
    pub temperature: Option<f64>,
    /// 1 to 1000.
    pub top_k: Option<u32>,
    /// Above 0, to 1.
    pub top_p: Option<f64>,
    /// 0 to 1.
    pub min_p: Option<f64>,
    /// Makes a run repeatable.
    pub seed: Option<u64>,
    /// -2 to 2.
    pub presence_penalty: Option<f64>,
    /// -2 to 2.
    pub frequency_penalty: Option<f64>,
    /// Above 0, to 2.
    pub repetition_penalty: Option<f64>,
}

/// Where an answer ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stopping {
    /// New tokens at most; 0 until [`GenerateRequest::check`] puts the default in.
    pub max_tokens: u32,
    /// The answer ends before the first of these.
    pub stop: Vec<String>,
    /// The request ends after this time, queue and loading included; 0 is none.
    pub deadline_ms: u64,
}

/// How urgent a request is. The order is that of urgency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A person waits for it: it goes first, and background work stands still meanwhile.
    Interactive,
    /// The default.
    #[default]
    Normal,
    /// Nobody waits for it.
    Background,
}

impl Priority {
    /// Every one, the most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Normal, Self::Background];

    /// The name on D-Bus.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Normal => "normal",
            Self::Background => "background",
        }
    }
}

/// A request for text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerateRequest {
    /// Oldest first; the last is the user's.
    pub messages: Vec<Message>,
    /// How tokens are drawn.
    pub sampling: Sampling,
    /// Where the answer ends.
    pub stopping: Stopping,
    /// A JSON Schema, as JSON, that the answer follows.
    pub json_schema: Option<String>,
    /// Whether to tell how likely the answer's tokens were, and how many of the likeliest with each.
    pub top_logprobs: Option<u32>,
    /// How urgent it is.
    pub priority: Priority,
    /// The session that it goes on with; empty: none. Its transcript comes before `messages`, which may
    /// be empty where that ends with a question.
    pub session: String,
    /// No answer is wanted: the prompt is read up to where the next message would begin, so that its
    /// answer comes sooner.
    pub prewarm: bool,
}

/// What a request may ask for, from the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that generate at once.
    pub parallel_requests: u32,
    /// Requests that may wait.
    pub queued_requests: u32,
    /// `Stopping::max_tokens` at most.
    pub max_tokens: u32,
    /// `Stopping::max_tokens` when a request names none.
    pub default_max_tokens: u32,
    /// Text in one request, all messages together.
    pub prompt_bytes: u32,
}

/// Stop strings in one request, and bytes in one of them.
const STOP_STRINGS: usize = 8;
const STOP_BYTES: usize = 256;
/// A JSON Schema has this many bytes at most.
const SCHEMA_BYTES: usize = 64 << 10;
/// `GenerateRequest::top_logprobs` at most.
const TOP_LOGPROBS: u32 = 20;
/// Messages in one conversation, and parts in one message: beyond any use, and a bound for templates and
/// for memory.
const MESSAGES: usize = 1024;
const PARTS: usize = 64;

impl GenerateRequest {
    /// Checks every value and puts the default for `max_tokens` in. `before` is what the session holds.
    pub fn check(&mut self, before: &[Message], limits: &Limits) -> Result<(), Error> {
        if self.prewarm {
            if before.is_empty() {
                return Err(Error::invalid("session", "it is empty: there is nothing to read"));
            }
        } else {
            let asked = self.messages.is_empty() && before.last().is_some_and(Message::is_question);
            if !asked {
                check_question(&self.messages)?;
            }
        }
        check_turns(before, &self.messages, limits)?;
        self.sampling.check()?;
        self.stopping.check(limits)?;
        if let Some(top) = self.top_logprobs.filter(|top| *top > TOP_LOGPROBS) {
            let problem = format!("{top} is not within 0 and {TOP_LOGPROBS}");
            return Err(Error::invalid("top_logprobs", problem));
        }
        self.json_schema.as_deref().map_or(Ok(()), check_schema)
    }
}

/// Whether it is JSON, and could be a schema; the engine reads it.
fn check_schema(schema: &str) -> Result<(), Error> {
    let wrong = |problem: String| Err(Error::invalid("json_schema", problem));
    if schema.len() > SCHEMA_BYTES {
        return wrong(format!("{} bytes, and at most {SCHEMA_BYTES} are taken", schema.len()));
    }
    match serde_json::from_str(schema) {
        Ok(serde_json::Value::Object(_) | serde_json::Value::Bool(_)) => Ok(()),
        Ok(_) => wrong("a schema is an object or a truth value".into()),
        Err(error) => wrong(format!("it is no JSON: {error}")),
    }
}

/// Checks a conversation: its order and its length.
pub fn check_messages(messages: &[Message], limits: &Limits) -> Result<(), Error> {
    check_question(messages)?;
    check_turns(&[], messages, limits)
}

/// Checks that there is something to answer.
fn check_question(messages: &[Message]) -> Result<(), Error> {
    match messages.last() {
        None => Err(Error::invalid("messages", "at least one message")),
        Some(last) if !last.is_question() => Err(Error::invalid(
            format!("messages[{}].role", messages.len() - 1),
            "the last message must be the user's",
        )),
        Some(_) => Ok(()),
    }
}

/// Checks messages that go on with a conversation, which was checked itself.
pub fn check_turns(before: &[Message], messages: &[Message], limits: &Limits) -> Result<(), Error> {
    if before.len() + messages.len() > MESSAGES {
        let problem = format!("at most {MESSAGES} messages, a session's transcript included");
        return Err(Error::invalid("messages", problem));
    }
    let length =
        |message: &Message| message.parts.iter().map(|Part::Text(text)| text.len()).sum::<usize>();
    let mut bytes: usize = before.iter().map(length).sum();
    for (index, message) in messages.iter().enumerate() {
        if message.role == Role::System && (index > 0 || !before.is_empty()) {
            return Err(Error::invalid(
                format!("messages[{index}].role"),
                "only the first message may be the system's",
            ));
        }
        if message.parts.is_empty() {
            return Err(Error::invalid(format!("messages[{index}].parts"), "at least one part"));
        }
        if message.parts.len() > PARTS {
            let problem = format!("at most {PARTS} parts");
            return Err(Error::invalid(format!("messages[{index}].parts"), problem));
        }
        bytes += length(message);
    }
    if bytes > limits.prompt_bytes as usize {
        return Err(Error::invalid(
            "messages",
            format!("{bytes} bytes of text, and at most {} are taken", limits.prompt_bytes),
        ));
    }
    Ok(())
}

impl Sampling {
    fn check(&self) -> Result<(), Error> {
        let check = |name: &str, value: Option<f64>, fits: fn(f64) -> bool, range: &str| match value
        {
            Some(value) if !fits(value) => {
                Err(Error::invalid(format!("sampling.{name}"), format!("{value} is not {range}")))
            }
            _ => Ok(()),
        };
        let penalty = |value: f64| (-2.0..=2.0).contains(&value);
        check("temperature", self.temperature, |t| (0.0..=2.0).contains(&t), "within 0 and 2")?;
        check(
            "top_k",
            self.top_k.map(f64::from),
            |k| (1.0..=1e3).contains(&k),
            "within 1 and 1000",
        )?;
        check("top_p", self.top_p, |p| p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        check("min_p", self.min_p, |p| (0.0..=1.0).contains(&p), "within 0 and 1")?;
        check("presence_penalty", self.presence_penalty, penalty, "within -2 and 2")?;
        check("frequency_penalty", self.frequency_penalty, penalty, "within -2 and 2")?;
        let (name, value) = ("repetition_penalty", self.repetition_penalty);
        check(name, value, |r| r > 0.0 && r <= 2.0, "above 0 and at most 2")
    }
}

impl Stopping {
    fn check(&mut self, limits: &Limits) -> Result<(), Error> {
        if self.max_tokens == 0 {
            self.max_tokens = limits.default_max_tokens;
        }
        if self.max_tokens > limits.max_tokens {
            return Err(Error::invalid(
                "stopping.max_tokens",
                format!("{} is above the limit of {}", self.max_tokens, limits.max_tokens),
            ));
        }
        if self.stop.len() > STOP_STRINGS {
            return Err(Error::invalid("stopping.stop", format!("at most {STOP_STRINGS} strings")));
        }
        for (index, stop) in self.stop.iter().enumerate() {
            if stop.is_empty() || stop.len() > STOP_BYTES {
                return Err(Error::invalid(
                    format!("stopping.stop[{index}]"),
                    format!("a stop string has 1 to {STOP_BYTES} bytes"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        parallel_requests: 1,
        queued_requests: 1,
        max_tokens: 100,
        default_max_tokens: 10,
        prompt_bytes: 64,
    };

    fn message(role: Role, text: &str) -> Message {
        Message { role, parts: vec![Part::Text(text.into())] }
    }

    fn request() -> GenerateRequest {
        GenerateRequest {
            messages: vec![message(Role::System, "Be brief."), message(Role::User, "Hello")],
            ..GenerateRequest::default()
        }
    }

    fn field(change: impl FnOnce(&mut GenerateRequest)) -> String {
        let mut request = request();
        change(&mut request);
        match request.check(&[], &LIMITS) {
            Err(Error::InvalidArgument { field, .. }) => field,
            other => panic!("expected an invalid argument, got {other:?}"),
        }
    }

    #[test]
    fn a_good_request_gets_the_default_length() {
        let mut request = request();
        request.check(&[], &LIMITS).unwrap();
        assert_eq!(request.stopping.max_tokens, 10);
    }

    #[test]
    fn what_a_session_holds_counts() {
        let before = [message(Role::System, &"x".repeat(60))];
        let error = request().check(&before, &LIMITS).unwrap_err().to_string();
        assert!(error.starts_with("messages[0].role: only the first"), "{error}");
        let mut request = request();
        request.messages.remove(0);
        let error = request.check(&before, &LIMITS).unwrap_err().to_string();
        assert!(error.contains("65 bytes"), "{error}");
        request.messages.clear();
        assert!(request.check(&before, &LIMITS).is_err());
        request.prewarm = true;
        request.check(&before, &LIMITS).unwrap();
    }

    #[test]
    fn bad_values_are_refused_by_name() {
        assert_eq!(field(|r| r.messages.clear()), "messages");
        assert_eq!(field(|r| r.messages.reverse()), "messages[1].role");
        assert_eq!(field(|r| r.messages.insert(0, message(Role::User, "?"))), "messages[1].role");
        assert_eq!(field(|r| r.messages[1].parts.clear()), "messages[1].parts");
        let empty = || Part::Text(String::new());
        assert_eq!(field(|r| r.messages[1].parts.resize(65, empty())), "messages[1].parts");
        assert_eq!(field(|r| r.messages[1] = message(Role::User, &"x".repeat(65))), "messages");
        assert_eq!(field(|r| r.sampling.temperature = Some(f64::NAN)), "sampling.temperature");
        assert_eq!(field(|r| r.sampling.temperature = Some(-0.1)), "sampling.temperature");
        assert_eq!(field(|r| r.sampling.top_k = Some(0)), "sampling.top_k");
        assert_eq!(field(|r| r.sampling.top_p = Some(0.0)), "sampling.top_p");
        assert_eq!(field(|r| r.sampling.min_p = Some(1.5)), "sampling.min_p");
        assert_eq!(field(|r| r.sampling.presence_penalty = Some(3.0)), "sampling.presence_penalty");
        assert_eq!(
            field(|r| r.sampling.frequency_penalty = Some(f64::INFINITY)),
            "sampling.frequency_penalty"
        );
        assert_eq!(
            field(|r| r.sampling.repetition_penalty = Some(0.0)),
            "sampling.repetition_penalty"
        );
        for schema in ["", "{", "[]", "7", &format!("{{\"title\": \"{}\"}}", "x".repeat(65_536))] {
            let mut request = request();
            request.json_schema = Some(schema.into());
            let error = request.check(&[], &LIMITS).unwrap_err().to_string();
            assert!(error.starts_with("json_schema: "), "{error}");
        }
        assert_eq!(field(|r| r.top_logprobs = Some(21)), "top_logprobs");
        assert_eq!(field(|r| r.top_logprobs = Some(u32::MAX)), "top_logprobs");
        assert_eq!(field(|r| r.stopping.max_tokens = 101), "stopping.max_tokens");
        assert_eq!(field(|r| r.stopping.stop = vec!["x".into(); 9]), "stopping.stop");
        assert_eq!(
            field(|r| r.stopping.stop = vec!["a".into(), String::new()]),
            "stopping.stop[1]"
        );
    }
}
