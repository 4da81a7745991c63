//! `[access]`: who may do what.

use super::reader::Reader;
use crate::types::{Access, Entry};

pub(super) fn read(read: &mut Reader) -> Access {
    Access {
        observe: read.list("access.observe", Entry::parse),
        uses: read.list("access.use", Entry::parse),
        control: read.list("access.control", Entry::parse),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Layers};
    use super::*;

    fn load(text: &str, environment: &[(&str, &str)]) -> Result<Access, Vec<String>> {
        let folder = tempfile::tempdir().unwrap();
        let admin = folder.path().join("admin.toml");
        std::fs::write(&admin, text).unwrap();
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let layers = Layers {
            vendor: folder.path().join("vendor.toml"),
            admin,
            admin_must_exist: true,
            environment: environment.iter().map(own).collect(),
        };
        let told = |problems: Vec<super::super::Problem>| {
            problems.iter().map(ToString::to_string).collect()
        };
        Config::load(&layers).map(|config| config.access).map_err(told)
    }

    #[test]
    fn everybody_uses_and_root_controls_unless_said_otherwise() {
        let access = load("", &[]).unwrap();
        assert_eq!((access.observe, access.uses), (vec![Entry::Everybody], vec![Entry::Everybody]));
        assert_eq!(access.control, [Entry::User("root".into())]);
    }

    #[test]
    fn a_later_list_replaces_the_earlier_one() {
        let text = "[access]\nuse = [\"@apps\", \"cert:tablet\"]\ncontrol = []\n";
        let access = load(text, &[("NESTD_ACCESS__OBSERVE", "alice, @video,")]).unwrap();
        assert_eq!(access.observe, [Entry::User("alice".into()), Entry::Group("video".into())]);
        let tablet = Entry::Certificate("tablet".into());
        assert_eq!(access.uses, [Entry::Group("apps".into()), tablet]);
        assert_eq!(access.control, []);
    }

    #[test]
    fn what_is_no_entry_is_told_with_its_key_and_file() {
        let text = "[access]\nuse = [\"a b\", \"ok\", 7, \"cert:\"]\ncontrol = {}\n";
        let told = load(text, &[]).unwrap_err();
        let has = |words: &[&str]| {
            let found = told.iter().any(|line| words.iter().all(|word| line.contains(word)));
            assert!(found, "{words:?} in {told:#?}");
        };
        has(&["admin.toml", "access.use", "\"a b\" is not a user's name"]);
        has(&["admin.toml", "access.use", "\"cert:\""]);
    }
}
