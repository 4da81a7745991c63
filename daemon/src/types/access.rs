//! Who may do what: three classes of calls, and the table of who has which.
//!
//! `config` reads the entries, `app` resolves them to a [`Table`] at start and on SIGHUP, and `api` asks
//! it before every call.

use nix::unistd::{Group, User};

use super::Client;

/// What a call does to others. A client that has one class has those before it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Reads state.
    Observe,
    /// Has the model work.
    Use,
    /// Changes what others share.
    Control,
}

impl Class {
    /// All, the lowest first.
    pub const ALL: [Self; 3] = [Self::Observe, Self::Use, Self::Control];

    /// The configuration's name for it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Use => "use",
            Self::Control => "control",
        }
    }
}

/// Whom a line of the table is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Everybody who can reach the socket or the bus, but nobody on TCP.
    Everybody,
    /// A user, by name or number.
    User(String),
    /// The members of a group, by name or number.
    Group(String),
    /// Clients on TCP whose certificate has this name.
    Certificate(String),
}

impl Entry {
    /// Reads an entry as the configuration writes it; the error says what it may be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let account = |name: &str| {
            let other = |c: char| c.is_whitespace() || c.is_control() || "@*:/,".contains(c);
            !name.is_empty() && name.len() <= 256 && !name.contains(other)
        };
        if text == "*" {
            Ok(Self::Everybody)
        } else if let Some(name) = text.strip_prefix("cert:")
            && !name.trim().is_empty()
            && !name.contains(char::is_control)
        {
            Ok(Self::Certificate(name.into()))
        } else if let Some(name) = text.strip_prefix('@')
            && account(name)
        {
            Ok(Self::Group(name.into()))
        } else if account(text) {
            Ok(Self::User(text.into()))
        } else {
            Err(format!(
                "{text:?} is not a user's name, \"@group\", \"*\" or \"cert:NAME\" (a certificate's name)"
            ))
        }
    }
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Everybody => f.write_str("*"),
            Self::User(name) => f.write_str(name),
            Self::Group(name) => write!(f, "@{name}"),
            Self::Certificate(name) => write!(f, "cert:{name}"),
        }
    }
}

/// The entries of each class, as configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// `[access] observe`
    pub observe: Vec<Entry>,
    /// `[access] use`
    pub uses: Vec<Entry>,
    /// `[access] control`
    pub control: Vec<Entry>,
}

/// The table with users and groups as numbers.
#[derive(Debug, Default)]
pub struct Table {
    rows: [Row; 3],
}

#[derive(Debug, Default)]
struct Row {
    everybody: bool,
    uids: Vec<u32>,
    gids: Vec<u32>,
    certificates: Vec<String>,
    /// As configured, for refusals.
    text: String,
}

impl Access {
    /// Looks users and groups up. Those that do not exist (an image may be built before its users) are
    /// given to `unknown` with their key, and nobody gets in by them.
    pub fn resolve(&self, mut unknown: impl FnMut(String, &Entry)) -> Table {
        let lists = [&self.observe, &self.uses, &self.control];
        let mut table = Table::default();
        for ((row, entries), class) in table.rows.iter_mut().zip(lists).zip(Class::ALL) {
            for entry in entries {
                match entry {
                    Entry::Everybody => row.everybody = true,
                    Entry::Certificate(name) => row.certificates.push(name.clone()),
                    Entry::User(name) => match user(name) {
                        Some(uid) => row.uids.push(uid),
                        None => unknown(format!("access.{}", class.name()), entry),
                    },
                    Entry::Group(name) => match group(name) {
                        Some(gid) => row.gids.push(gid),
                        None => unknown(format!("access.{}", class.name()), entry),
                    },
                }
            }
            let names: Vec<_> = entries.iter().map(ToString::to_string).collect();
            row.text = if names.is_empty() { "nobody".into() } else { names.join(", ") };
        }
        table
    }
}

fn user(name: &str) -> Option<u32> {
    let found = User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
    found.or_else(|| number(name))
}

fn group(name: &str) -> Option<u32> {
    let found = Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    found.or_else(|| number(name))
}

fn number(name: &str) -> Option<u32> {
    name.parse().ok().filter(|_| !name.starts_with('+'))
}

impl Table {
    /// Whether the client has the class. Root always has, as it could change the table; by a certificate
    /// only certificates' entries count.
    #[must_use]
    pub fn allows(&self, client: &Client, class: Class) -> bool {
        if let Some(certificate) = &client.certificate {
            return self.rows_of(class).any(|(_, row)| row.certificates.contains(certificate));
        }
        let by_number = |row: &Row| {
            client.uid.is_some_and(|uid| row.uids.contains(&uid))
                || client.gids.iter().any(|gid| row.gids.contains(gid))
        };
        client.uid == Some(0) || self.rows_of(class).any(|(_, row)| row.everybody || by_number(row))
    }

    /// Whether everybody on the socket and the bus has the class, so that nobody has to be asked for.
    #[must_use]
    pub fn is_open(&self, class: Class) -> bool {
        self.rows_of(class).any(|(_, row)| row.everybody)
    }

    /// Who has the class, for a person: the keys with their entries.
    #[must_use]
    pub fn who(&self, class: Class) -> String {
        let keys = self.rows_of(class).map(|(class, row)| {
            let name = class.name();
            format!("access.{name} ({})", row.text)
        });
        keys.collect::<Vec<_>>().join(" or ")
    }

    /// The class's row and those that include it.
    fn rows_of(&self, class: Class) -> impl Iterator<Item = (Class, &Row)> {
        Class::ALL.into_iter().zip(&self.rows).filter(move |(higher, _)| *higher >= class)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(text: &str) -> Vec<Entry> {
        text.split_whitespace().map(|entry| Entry::parse(entry).unwrap()).collect()
    }

    fn table(observe: &str, uses: &str, control: &str) -> Table {
        let access =
            Access { observe: entries(observe), uses: entries(uses), control: entries(control) };
        access.resolve(|key, entry| panic!("{key}: {entry}"))
    }

    fn client(uid: u32, gids: &[u32]) -> Client {
        Client { uid: Some(uid), gids: gids.into(), ..Client::default() }
    }

    fn with_certificate(name: &str) -> Client {
        Client { certificate: Some(name.into()), ..Client::default() }
    }

    fn classes(table: &Table, client: &Client) -> Vec<Class> {
        Class::ALL.into_iter().filter(|class| table.allows(client, *class)).collect()
    }

    #[test]
    fn entries_are_read_and_written_alike() {
        for text in ["*", "root", "1000", "@video", "@44", "cert:Kitchen tablet", "cert:a.local"] {
            assert_eq!(Entry::parse(text).unwrap().to_string(), text);
        }
        for text in ["", "@", "cert:", "cert: ", "**", "a b", "user:x", "a,b", "@@x", "a\n", "/x"] {
            let problem = Entry::parse(text).unwrap_err();
            assert!(problem.contains(&format!("{text:?}")), "{problem}");
        }
    }

    #[test]
    fn a_higher_class_includes_the_lower_ones() {
        let table = table("*", "@500", "root 1000");
        assert_eq!(classes(&table, &client(1000, &[])), Class::ALL);
        assert_eq!(classes(&table, &client(7, &[3, 500])), [Class::Observe, Class::Use]);
        assert_eq!(classes(&table, &client(7, &[3])), [Class::Observe]);
        assert_eq!(classes(&table, &Client::default()), [Class::Observe]);
        assert_eq!(table.who(Class::Use), "access.use (@500) or access.control (root, 1000)");
        assert!(table.is_open(Class::Observe) && !table.is_open(Class::Use));
    }

    #[test]
    fn nobody_but_root_has_what_no_entry_gives() {
        let table = table("", "", "");
        assert_eq!(classes(&table, &client(0, &[])), Class::ALL);
        assert_eq!(classes(&table, &client(1, &[0])), []);
        assert_eq!(classes(&table, &Client::default()), []);
        assert_eq!(table.who(Class::Control), "access.control (nobody)");
    }

    #[test]
    fn certificates_have_entries_of_their_own() {
        let table = table("*", "* cert:phone", "root cert:tablet");
        assert_eq!(classes(&table, &with_certificate("tablet")), Class::ALL);
        assert_eq!(classes(&table, &with_certificate("phone")), [Class::Observe, Class::Use]);
        for name in ["other", "root", "*", ""] {
            assert_eq!(classes(&table, &with_certificate(name)), [], "{name}");
        }
        // A user is no certificate of that name.
        assert_eq!(classes(&table, &client(9, &[])), [Class::Observe, Class::Use]);
    }

    #[test]
    fn who_does_not_exist_is_told_and_nobody() {
        let access = Access {
            observe: entries("@no-such-group"),
            uses: vec![],
            control: entries("no-such-user +7 root"),
        };
        let mut told = Vec::new();
        let table = access.resolve(|key, entry| told.push(format!("{key} {entry}")));
        let control = ["access.control no-such-user", "access.control +7"];
        assert_eq!(told, [&["access.observe @no-such-group"][..], &control].concat());
        assert_eq!(classes(&table, &client(7, &[7])), []);
    }
}
