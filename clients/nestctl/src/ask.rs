//! `nestctl ask`, and the answering that `chat` shares with it: text to standard output as it comes,
//! progress and times to standard error.

use futures::StreamExt;
use nestd_client::v1::Priority;
use nestd_client::{
    Client, message,
    v1::{
        Finished, GenerateRequest, Message, Role, Sampling, SizeChanged, Stopping, TokenLogprobs,
        generate_event::Event,
    },
};

use crate::{
    args::{AskArgs, Options},
    json, logprobs,
    problem::Problem,
    render::Screen,
};

/// Asks one question.
pub async fn ask(client: &Client, args: &AskArgs, screen: &mut Screen) -> Result<(), Problem> {
    let question = args.question.join(" ");
    let mut request = request(&args.options, &[message(Role::User, question)]);
    request.top_logprobs = args.logprobs;
    request.session = args.session.clone().unwrap_or_default();
    let mut said = Said::default();
    let end = answer(client, request, screen, &mut said).await?;
    if args.logprobs.is_some() && !screen.json {
        screen.text(&format!("\n{}", logprobs::table(&said.logprobs)))?;
    }
    if !args.options.quiet && !screen.json {
        screen.note(&summary(&end));
    }
    Ok(())
}

/// A request for the turns so far, after the standing instructions if there are any.
pub fn request(options: &Options, turns: &[Message]) -> GenerateRequest {
    let system = options.system.as_ref().map(|text| message(Role::System, text));
    GenerateRequest {
        messages: system.into_iter().chain(turns.iter().cloned()).collect(),
        sampling: Some(Sampling {
            temperature: options.temperature,
            top_k: options.top_k,
            top_p: options.top_p,
            min_p: options.min_p,
            seed: options.seed,
            presence_penalty: options.presence_penalty,
            frequency_penalty: options.frequency_penalty,
            repetition_penalty: options.repetition_penalty,
        }),
        stopping: Some(Stopping {
            max_tokens: options.max_tokens.unwrap_or_default(),
            stop: options.stop.clone(),
            deadline_ms: options.deadline_ms.unwrap_or_default(),
        }),
        priority: Priority::from(options.priority).into(),
        json_schema: options.json_schema.clone().unwrap_or_default(),
        ..GenerateRequest::default()
    }
}

/// What came of an answer so far.
#[derive(Default)]
pub struct Said {
    pub text: String,
    /// Of its tokens, where they were asked for.
    pub logprobs: Vec<TokenLogprobs>,
}

/// Prints an answer as it comes, and keeps in `said` what came so far. Dropping it cancels.
pub async fn answer(
    client: &Client,
    request: GenerateRequest,
    screen: &mut Screen,
    said: &mut Said,
) -> Result<Finished, Problem> {
    let mut events = client.generate(request).await?;
    let mut finished = None;
    while let Some(event) = events.next().await {
        let event = event?;
        if screen.json {
            screen.value(&json::event(&event))?;
        }
        match event.event {
            Some(Event::Text(piece)) => {
                if !screen.json {
                    screen.text(&piece.delta)?;
                }
                said.text += &piece.delta;
                said.logprobs.extend(piece.logprobs);
            }
            Some(Event::SizeChanged(change)) => screen.mark(&size_changed(&change)),
            Some(Event::Finished(end)) => finished = Some(end),
            Some(other) => screen.progress(&progress(&other)),
            None => {}
        }
    }
    screen.clear();
    if !screen.json {
        screen.end_line()?;
    }
    // The client ends every stream with one of the two.
    Ok(finished.unwrap_or_default())
}

fn progress(event: &Event) -> String {
    match event {
        Event::Queued(queued) if queued.position == 0 => "waiting: next in the queue".into(),
        Event::Queued(queued) => format!("waiting: {} ahead in the queue", queued.position),
        Event::Loading(loading) => format!("loading the model: {:.0} %", loading.fraction * 100.0),
        Event::Prefill(prefill) => format!(
            "reading the prompt: {} of {} tokens",
            prefill.done_tokens, prefill.total_tokens
        ),
        Event::SizeChanged(_) | Event::Text(_) | Event::Finished(_) => String::new(),
    }
}

fn size_changed(change: &SizeChanged) -> String {
    format!("[size {} -> {}: {}]", change.from, change.to, change.reason)
}

/// How long it took, in one line.
pub fn summary(end: &Finished) -> String {
    let usage = end.usage.unwrap_or_default();
    let timings = end.timings.unwrap_or_default();
    let mut facts = vec![match usage.completion_tokens {
        1 => "1 token".to_owned(),
        tokens => format!("{tokens} tokens"),
    }];
    if timings.ttft_us > 0 {
        facts.push(format!("first after {:.0} ms", timings.ttft_us as f64 / 1000.0));
    }
    if timings.decode_tokens_per_s > 0.0 {
        facts.push(format!("{:.1} tokens/s", timings.decode_tokens_per_s));
    }
    if !end.sizes.is_empty() {
        facts.push(format!("size {}", end.sizes.join(" then ")));
    }
    facts.push(json::reason(end.reason()).to_owned());
    format!("[{}]", facts.join(", "))
}

#[cfg(test)]
mod tests {
    use nestd_client::v1::{FinishReason, Timings, Usage};

    use super::*;

    #[test]
    fn a_summary_says_what_is_known() {
        let mut end = Finished { reason: FinishReason::Stop.into(), ..Finished::default() };
        assert_eq!(summary(&end), "[0 tokens, stop]");
        end.usage = Some(Usage { completion_tokens: 14, ..Usage::default() });
        end.timings =
            Some(Timings { ttft_us: 120_400, decode_tokens_per_s: 31.25, ..Timings::default() });
        end.sizes = vec!["large".into(), "small".into()];
        assert_eq!(
            summary(&end),
            "[14 tokens, first after 120 ms, 31.2 tokens/s, size large then small, stop]"
        );
    }

    #[test]
    fn a_change_of_the_size_says_why() {
        let change = SizeChanged {
            from: "E4B".into(),
            to: "E2B".into(),
            reason: "the battery is low".into(),
        };
        assert_eq!(size_changed(&change), "[size E4B -> E2B: the battery is low]");
    }

    #[test]
    fn standing_instructions_come_first() {
        let options = Options { system: Some("Be brief.".into()), ..Options::default() };
        let request = request(&options, &[message(Role::User, "Hello")]);
        let roles: Vec<_> = request.messages.iter().map(Message::role).collect();
        assert_eq!(roles, [Role::System, Role::User]);
    }
}
