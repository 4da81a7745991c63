//! Answers that fit a JSON schema, a regular expression or a Lark grammar.
//!
//! For each token the grammar says which tokens may follow ([`Constraint::allowed`]); all others are made
//! impossible before one is chosen. The tree of all tokens' bytes that this needs is built when a
//! constraint is first asked for. With Gemma's vocabulary that takes 0.4 s and 79 MB, of which 37 MB stay:
//! the library keeps three copies. Whoever needs the memory drops the [`TrieEnv`] and makes a new one.
//! A step through a JSON schema then takes 5 to 100 µs, the first one inside a string 2.4 ms.
//!
//! A grammar comes from a client, so its size, the steps to read it, the steps for one token and the
//! memory of its automaton are limited; one that wants more fails.

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};

use super::tokenizer::{Kind, Tokenizer};
use super::vocab::SPACE;

/// The longest schema or expression, in bytes.
const GRAMMAR: usize = 256 * 1024;
/// The longest Lark grammar: the library calls itself for each rule that a rule refers to.
const LARK: usize = 64 * 1024;
/// The stack for reading one. Only what is used of it is memory.
const STACK: usize = 256 << 20;
/// The library's tree has no more nodes than this.
const NODES: usize = 4_000_000;
/// Nor a node deeper than this.
const DEPTH: usize = 1000;

/// What an answer has to fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grammar {
    /// A JSON schema, as JSON.
    JsonSchema(String),
    /// A regular expression for the whole answer.
    Regex(String),
    /// A grammar as `llguidance` reads Lark's.
    Lark(String),
}

/// Why an answer cannot be constrained.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The model's vocabulary does not do.
    #[error("the model's vocabulary cannot be constrained: {0}")]
    Vocabulary(&'static str),
    /// The grammar is wrong, or too much.
    #[error("the grammar is refused: {0}")]
    Grammar(String),
    /// The grammar turned out to be too much while it was followed.
    #[error("the grammar cannot be followed: {0}")]
    Step(String),
    /// A token that was not allowed.
    #[error("token {0} does not fit the grammar")]
    Token(u32),
}

/// The tree of a vocabulary, built when it is first needed.
pub struct TrieEnv {
    tokenizer: Arc<Tokenizer>,
    factory: OnceLock<Result<ParserFactory, Error>>,
}

impl TrieEnv {
    /// Builds nothing yet.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, factory: OnceLock::new() }
    }

    fn factory(&self) -> Result<&ParserFactory, Error> {
        self.factory.get_or_init(|| factory(&self.tokenizer)).as_ref().map_err(Clone::clone)
    }
}

impl fmt::Debug for TrieEnv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let built = self.factory.get().is_some();
        f.debug_struct("TrieEnv").field("built", &built).finish_non_exhaustive()
    }
}

fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, Error> {
    let ends: Vec<u32> = [tokenizer.eot(), tokenizer.eos()].into_iter().flatten().collect();
    let Some(&end) = ends.first() else {
        return Err(Error::Vocabulary("no token ends a text"));
    };
    let words = words(tokenizer);
    if words.iter().map(Vec::len).sum::<usize>() > NODES {
        return Err(Error::Vocabulary("it is too large"));
    }
    let trie = TokTrie::from(&TokRxInfo::new(tokenizer.len(), end), &words);
    let trie = if ends.len() > 1 { trie.with_eos_tokens(&ends) } else { trie };
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let refused = |_| Error::Vocabulary("its tree could not be built");
    let mut factory =
        ParserFactory::new(&env, InferenceCapabilities::default(), &[]).map_err(refused)?;
    // Errors go to the caller, not to standard error.
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        max_grammar_size: 100_000,
        // About 1 KB each.
        max_lexer_states: 20_000,
        // What a step may take, some 10 ms.
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        // Reading the grammar, some 20 ms.
        initial_lexer_fuel: 1_000_000,
        max_items_in_row: 2_000,
        // No walk over the whole vocabulary before the first token.
        precompute_large_lexemes: false,
        // The answer's text is not for the log.
        verbose_errors: false,
    };
    Ok(factory)
}

/// What each token adds to an answer; nothing for one that may never be in it.
fn words(tokenizer: &Tokenizer) -> Vec<Vec<u8>> {
    // A byte that is a piece too needs no second token, and the library has 0xFF for itself.
    let mut single = [false; 256];
    single[255] = true;
    let mut words = Vec::with_capacity(tokenizer.len() as usize);
    for id in 0..tokenizer.len() {
        let piece = tokenizer.piece(id);
        let mut word = Vec::new();
        match tokenizer.kind(id) {
            Some(Kind::Normal | Kind::UserDefined) if piece.first() != Some(&255) => {
                let mut rest = piece;
                while let Some(&byte) = rest.first() {
                    let space = rest.strip_prefix(SPACE.as_bytes());
                    word.push(if space.is_some() { b' ' } else { byte });
                    rest = space.or_else(|| rest.get(1..)).unwrap_or_default();
                }
                if let &[byte] = word.as_slice()
                    && let Some(slot) = single.get_mut(usize::from(byte))
                {
                    *slot = true;
                }
            }
            Some(Kind::Control) => {
                // The library's mark for what is no text.
                word.push(TokTrie::SPECIAL_TOKEN_MARKER);
                word.extend_from_slice(piece);
            }
            _ => {}
        }
        if word.len() > DEPTH {
            word = Vec::new();
        }
        words.push(word);
    }
    for (id, word) in (0..).zip(&mut words) {
        if tokenizer.kind(id) == Some(Kind::Byte)
            && let &[byte] = tokenizer.piece(id)
            && single.get(usize::from(byte)) == Some(&false)
        {
            word.push(byte);
        }
    }
    words
}

/// The tokens that may come next.
#[derive(Clone, Debug)]
pub struct Allowed(SimpleVob);

impl Allowed {
    /// Whether this token may.
    #[must_use]
    pub fn contains(&self, token: u32) -> bool {
        (token as usize) < self.0.len() && self.0.is_allowed(token)
    }

    /// How many may.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.num_set()
    }

    /// Makes all others impossible, and what is no token.
    pub fn apply(&self, logits: &mut [f32]) {
        let words = self.0.as_slice().iter().copied().chain(std::iter::repeat(0));
        for (chunk, word) in logits.chunks_mut(32).zip(words) {
            if word == u32::MAX {
                continue;
            }
            for (bit, logit) in chunk.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// One answer on its way through a grammar.
pub struct Constraint {
    matcher: Matcher,
    allowed: Option<Allowed>,
    /// A token that ends answers was taken.
    ended: bool,
    tokenizer: Arc<Tokenizer>,
}

impl Constraint {
    /// Reads a grammar.
    pub fn new(env: &TrieEnv, grammar: &Grammar) -> Result<Self, Error> {
        let (Grammar::JsonSchema(text) | Grammar::Regex(text) | Grammar::Lark(text)) = grammar;
        let (kind, longest) = match grammar {
            Grammar::JsonSchema(_) => ("json_schema", GRAMMAR),
            Grammar::Regex(_) => ("regex", GRAMMAR),
            Grammar::Lark(_) => ("lark", LARK),
        };
        if text.len() > longest {
            return Err(Error::Grammar(format!("it has more than {longest} bytes")));
        }
        let refused = |error: &dyn fmt::Display| Error::Grammar(error.to_string());
        let grammar =
            TopLevelGrammar::from_tagged_str(kind, text).map_err(|error| refused(&error))?;
        let factory = env.factory()?;
        let parser = read(|| factory.create_parser(grammar)).map_err(|error| refused(&error))?;
        let matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(refused(&error));
        }
        Ok(Self { matcher, allowed: None, ended: false, tokenizer: Arc::clone(&env.tokenizer) })
    }

    /// The tokens that may come next; once the answer is complete, those that end it.
    pub fn allowed(&mut self) -> Result<&Allowed, Error> {
        let allowed = match self.allowed.take() {
            Some(allowed) => allowed,
            None => Allowed(self.matcher.compute_mask_or_eos().map_err(step)?),
        };
        Ok(self.allowed.insert(allowed))
    }

    /// Takes the token that was chosen.
    pub fn accept(&mut self, token: u32) -> Result<(), Error> {
        if self.ended || !self.allowed()?.contains(token) {
            return Err(Error::Token(token));
        }
        if self.tokenizer.ends(token) {
            self.ended = true;
            return Ok(());
        }
        self.allowed = None;
        self.matcher.consume_token(token).map_err(step)
    }

    /// Whether nothing can follow: the answer is complete and may end without a token that ends it.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.ended || self.matcher.is_stopped()
    }
}

/// Runs the library's reading of a grammar. It calls itself for each rule that a rule refers to, and takes
/// what it did not foresee for a reason to panic; neither may end the process.
fn read<T: Send>(run: impl FnOnce() -> T + Send) -> Result<T, std::io::Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("grammar".into()).stack_size(STACK);
        let result = thread.spawn_scoped(scope, run)?.join();
        result.map_err(|_| std::io::Error::other("it cannot be read"))
    })
}

fn step(error: impl fmt::Display) -> Error {
    Error::Step(error.to_string())
}
