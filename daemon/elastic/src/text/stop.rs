//! Stop strings in a stream: text is held back while it may be the start of one.

/// Looks for the stop strings of one answer.
pub struct Stops {
    strings: Vec<String>,
    /// Text that was not let through: a proper start of some stop string.
    held: String,
}

/// What a piece of text led to.
#[derive(Debug, PartialEq, Eq)]
pub struct Passed {
    /// What may be shown now.
    pub text: String,
    /// A stop string was reached; nothing follows.
    pub stopped: bool,
}

impl Stops {
    /// Empty strings are in every text, so they are taken for none.
    #[must_use]
    pub fn new(mut strings: Vec<String>) -> Self {
        strings.retain(|string| !string.is_empty());
        Self { strings, held: String::new() }
    }

    /// Takes the next piece of the answer.
    pub fn push(&mut self, piece: &str) -> Passed {
        let mut text = std::mem::take(&mut self.held);
        text.push_str(piece);
        // The earliest in the text, whichever it is.
        let first = self.strings.iter().filter_map(|stop| text.find(stop.as_str())).min();
        if let Some(at) = first {
            text.truncate(at);
            return Passed { text, stopped: true };
        }
        let open = |at: &usize| {
            let tail = text.get(*at..).unwrap_or_default();
            self.strings.iter().any(|stop| stop.starts_with(tail))
        };
        let longest = self.strings.iter().map(String::len).max().unwrap_or(0);
        let from = text.len().saturating_sub(longest);
        let starts = (from..text.len()).filter(|at| text.is_char_boundary(*at));
        if let Some(at) = starts.into_iter().find(open) {
            self.held = text.split_off(at);
        }
        Passed { text, stopped: false }
    }

    /// The answer is over: what was held back is text after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is shown of `pieces`, and whether a stop string was reached.
    fn shown(stop: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stops = Stops::new(stop.iter().map(|stop| (*stop).to_owned()).collect());
        let mut text = String::new();
        for piece in pieces {
            let passed = stops.push(piece);
            text.push_str(&passed.text);
            if passed.stopped {
                return (text, true);
            }
        }
        text.push_str(&stops.finish());
        (text, false)
    }

    #[test]
    fn the_text_ends_before_the_first_stop_string() {
        assert_eq!(shown(&["END"], &["oneENDtwo"]), ("one".into(), true));
        assert_eq!(shown(&["two", "one"], &["zero one two"]), ("zero ".into(), true));
        assert_eq!(shown(&["aab"], &["a", "a", "a", "b"]), ("a".into(), true));
        assert_eq!(shown(&["ü!"], &["gr", "ü", "!"]), ("gr".into(), true));
        assert_eq!(shown(&["abc", "b"], &["a", "b"]), ("a".into(), true));
    }

    #[test]
    fn nothing_of_a_stop_string_is_shown_early() {
        let mut stops = Stops::new(vec!["</end>".into()]);
        assert_eq!(stops.push("x</e"), Passed { text: "x".into(), stopped: false });
        assert_eq!(stops.push("nd"), Passed { text: String::new(), stopped: false });
        assert_eq!(stops.push(">y"), Passed { text: String::new(), stopped: true });
    }

    #[test]
    fn what_only_looked_like_one_is_text() {
        assert_eq!(shown(&["</end>"], &["a</", "b", "</e"]), ("a</b</e".into(), false));
        assert_eq!(shown(&["aaa"], &["aa", "baa"]), ("aabaa".into(), false));
        assert_eq!(shown(&[], &["a", "b"]), ("ab".into(), false));
        assert_eq!(shown(&[""], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn every_way_to_cut_the_text_shows_the_same() {
        let text = "abababac abac";
        for cut in 1..text.len() {
            let (left, right) = text.split_at(cut);
            assert_eq!(shown(&["abac"], &[left, right]), ("abab".into(), true), "{cut}");
        }
    }
}
