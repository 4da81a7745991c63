//! Opening a GGUF file: what the list of models says about it, and everything that an engine needs.

use std::path::Path;
use std::sync::Arc;

use nestd_elastic::chat::{Chat, Sampling};
use nestd_elastic::error::Error as Problem;
use nestd_elastic::forward::Runner;
use nestd_elastic::gguf::Header;
use nestd_elastic::kv::{Shape, Store};
use nestd_elastic::ladder;
use nestd_elastic::model::Model;
use nestd_elastic::need::need;
use nestd_elastic::pool::{self, Pool};
use nestd_elastic::sidefile::SideFile;
use nestd_elastic::sizes::Slice;
use nestd_elastic::text::constrain::{Constraint, Grammar, TrieEnv};
use nestd_elastic::text::template::{Template, Turn};
use nestd_elastic::text::tokenizer::Tokenizer;

use super::super::{Constraints, Plan, Pulse};
use super::pages::Pages;
use super::prefix::Prefixes;
use super::spill::{self, Spill};
use super::{Elastic, count};
use crate::types::{EngineKind, Error, Loaded, Message, ModelInfo, Role, SizeInfo};

/// How the engine runs, from the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The computing threads.
    pub pool: pool::Settings,
    /// What keys and values are stored as.
    pub store: Store,
    /// Whether a second copy of some matrices is made in the cache folder, for speed.
    pub side_file: bool,
    /// Memory for KV caches that are kept after their requests.
    pub prefix_cache_mib: u64,
    /// Where those of sessions go when they have to leave memory.
    pub spill: spill::Settings,
}

/// A size that the model can run at.
pub struct Rung {
    pub name: String,
    pub slice: Slice,
}

/// The text side of the model.
pub struct Text {
    pub tokenizer: Arc<Tokenizer>,
    pub sampling: Sampling,
    template: Template,
    /// Its tree of the vocabulary is built for the first request that needs it: half a second and
    /// 40 MB for Gemma's.
    tree: TrieEnv,
}

impl Text {
    fn new(chat: Chat) -> Self {
        let tokenizer = Arc::new(chat.tokenizer);
        let tree = TrieEnv::new(Arc::clone(&tokenizer));
        Self { tokenizer, sampling: chat.sampling, template: chat.template, tree }
    }

    /// What keeps an answer to a JSON Schema.
    pub fn constraint(&self, schema: &str) -> Result<Constraint, Error> {
        Constraint::new(&self.tree, &Grammar::JsonSchema(schema.to_owned()))
            .map_err(|error| Error::invalid("json_schema", error.to_string()))
    }

    /// The conversation as tokens, with the start of an answer and exactly one BOS.
    pub fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        self.encode(&messages.iter().map(|m| (m.role, m.text())).collect::<Vec<_>>())
    }

    /// What every prompt begins with that goes on with this conversation.
    pub fn beginning(&self, messages: &[Message]) -> Result<Vec<u32>, Error> {
        let said = || messages.iter().map(|m| (m.role, m.text()));
        // Two letters that no text begins with alike.
        let with = |text: &str| {
            self.encode(&said().chain([(Role::User, text.to_owned())]).collect::<Vec<_>>())
        };
        let (mut one, other) = (with("A")?, with("z")?);
        let common = one.iter().zip(other).take_while(|(a, b)| **a == *b).count();
        one.truncate(common);
        Ok(one)
    }

    fn encode(&self, turns: &[(Role, String)]) -> Result<Vec<u32>, Error> {
        let turns: Vec<Turn<'_>> =
            turns.iter().map(|(role, text)| Turn { role: role.name(), text }).collect();
        self.template
            .encode_chat(&self.tokenizer, &turns)
            .map_err(|error| Error::invalid("messages", error.to_string()))
    }

    /// Where the standing instructions of a prompt end: the tokens that another question after the same
    /// system message begins with too.
    pub fn standing(&self, messages: &[Message], prompt: &[u32]) -> Option<usize> {
        let system = messages.first().filter(|message| message.role == Role::System)?;
        let beginning = self.beginning(std::slice::from_ref(system)).ok()?;
        Some(prompt.iter().zip(beginning).take_while(|(a, b)| **a == *b).count())
    }
}

/// What the list of models says about a file, from its header.
pub fn inspect(
    model: &str,
    path: &Path,
    engine: &super::super::Settings,
) -> Result<ModelInfo, Error> {
    let invalid = |problem: Problem| invalid(model, &problem);
    let settings = &engine.elastic;
    // One more: an interactive request runs beside background ones that stand still. And as much as
    // another's may wait to be written to storage.
    let parallel = u64::from(engine.parallel_requests) + 1 + u64::from(settings.spill.mib > 0);
    let opened = Model::open(path).map_err(invalid)?;
    let header = Header::read(opened.map().bytes()).map_err(invalid)?;
    let context = context(&opened, engine.context_tokens);
    let sizes = ladder::sizes_of(path, opened.config()).map_err(invalid)?;
    let mut infos = Vec::new();
    for size in sizes {
        let slice = opened.slice(&size).map_err(invalid)?;
        let need = need(&header, opened.config(), &slice, context, settings.store);
        let kv = need.kv.saturating_mul(parallel);
        let rest = need.total() - need.kv + (settings.prefix_cache_mib << 20);
        let bytes = kv.saturating_add(rest);
        infos.push(SizeInfo {
            name: size.name,
            effective_params_b: size.effective_params_b,
            memory_mib: bytes.div_ceil(1 << 20),
        });
    }
    let context_tokens = count(opened.config().context);
    Ok(ModelInfo { engine: EngineKind::Elastic, sizes: infos, context_tokens })
}

impl Elastic {
    /// Maps a file and reads its text side.
    pub fn load(plan: &Plan, progress: &dyn Fn(f64), pulse: &Pulse) -> Result<Self, Error> {
        let settings = &plan.settings.elastic;
        let invalid = |problem: Problem| invalid(&plan.model, &problem);
        let model = Model::open(&plan.path).map_err(invalid)?;
        progress(0.1);
        if settings.store == Store::Q8_0 && !model.config().head_dim.is_multiple_of(32) {
            let problem =
                "its heads are no multiple of 32 wide, as elastic.kv = \"q8_0\" needs them";
            return Err(Error::ModelInvalid { model: plan.model.clone(), problem: problem.into() });
        }
        let model = with_side_file(model, plan);
        progress(0.4);
        let chat = Chat::read(&model).map_err(invalid)?;
        progress(0.5);
        let mut rungs = Vec::new();
        for size in ladder::sizes_of(&plan.path, model.config()).map_err(invalid)? {
            let slice = model.slice(&size).map_err(invalid)?;
            rungs.push(Rung { name: size.name, slice });
        }
        let slice = rungs.iter().find(|rung| rung.name == plan.size).map(|rung| &rung.slice);
        let slice = slice.cloned().ok_or_else(|| {
            let names: Vec<_> = rungs.iter().map(|rung| rung.name.as_str()).collect();
            let problem = format!("it has no size {:?}, but {}", plan.size, names.join(", "));
            Error::ModelInvalid { model: plan.model.clone(), problem }
        })?;
        let pool = Pool::new(&settings.pool)
            .map_err(|error| Error::Internal(format!("the computing threads: {error}")))?;
        let context = context(&model, plan.settings.context_tokens);
        let loaded = Loaded {
            model: plan.model.clone(),
            engine: EngineKind::Elastic,
            size: plan.size.clone(),
            sizes: rungs.iter().map(|rung| rung.name.clone()).collect(),
            context_tokens: count(context),
            parallel_requests: plan.settings.parallel_requests,
        };
        let work = pulse.thread.clone();
        let runner = Runner::new(pool, None).watched(move || work.sign());
        tracing::info!(
            model = plan.model,
            kernels = runner.kernels().name(),
            threads = runner.threads(),
            "mapped"
        );
        let model = Arc::new(model);
        // The first request need not wait for the disk.
        let pages = Pages::new(&model, &slice);
        // As much as one request's caches at the full context may wait for the storage.
        let backlog = Shape::new(model.config(), context, settings.store).bytes();
        let spill = Spill::start(&settings.spill, &model, settings.store, backlog);
        Ok(Self {
            loaded,
            model,
            text: Arc::new(Text::new(chat)),
            runner,
            rungs,
            slice,
            store: settings.store,
            spill,
            prefill: None,
            prefixes: Prefixes::new(settings.prefix_cache_mib << 20),
            waiting: Vec::new(),
            readers: Arc::default(),
            steps: 0,
            constraints: Constraints::default(),
            kv_bytes: Arc::default(),
            running: Vec::new(),
            pages,
        })
    }
}

/// The model with its side file, which is made if it is not there. Without one it works as well, only
/// slower, so what goes wrong here is no more than told.
fn with_side_file(model: Model, plan: &Plan) -> Model {
    if !plan.settings.elastic.side_file {
        return model;
    }
    let path = plan.settings.cache_dir.join("elastic").join(format!("{}.columns", plan.model));
    match SideFile::open_or_write(&path, &model) {
        Ok(Some(side)) => model.with_side(side),
        Ok(None) => model,
        Err(error) => {
            tracing::warn!(%error, "no side file");
            model
        }
    }
}

/// The configured context, or the model's own if that is shorter or none is configured.
fn context(model: &Model, configured: u32) -> usize {
    let own = model.config().context;
    match usize::try_from(configured) {
        Ok(configured) if configured > 0 => configured.min(own),
        _ => own,
    }
}

fn invalid(model: &str, problem: &Problem) -> Error {
    Error::ModelInvalid { model: model.to_owned(), problem: problem.to_string() }
}
