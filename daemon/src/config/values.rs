//! Values that are texts in the file: each reader gives the value, or what is wrong with the text.

use nestd_elastic::kv::Store;

use super::Bus;
use crate::engine::Isq;
use crate::governor::sensors::battery;
use crate::types::EngineKind;

pub(super) fn engine(text: &str) -> Result<Option<EngineKind>, String> {
    match text {
        "auto" => Ok(None),
        "mistralrs" => Ok(Some(EngineKind::Mistralrs)),
        "elastic" => Ok(Some(EngineKind::Elastic)),
        _ => Err("is not one of \"auto\", \"elastic\", \"mistralrs\"".into()),
    }
}

pub(super) fn battery_source(text: &str) -> Result<battery::Source, String> {
    battery::Source::parse(text)
        .ok_or_else(|| "is not one of \"auto\", \"upower\", \"sysfs\", \"none\"".into())
}

#[expect(clippy::unnecessary_wraps, reason = "as the other parsers")]
pub(super) fn names(text: &str) -> Result<Vec<String>, String> {
    let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
    Ok(names.map(str::to_owned).collect())
}

/// Numbers and ranges of them, as in `taskset`: "0,2-3".
pub(super) fn cores(text: &str) -> Result<Vec<usize>, String> {
    let wrong = || "is not a list of cores such as \"0,2-3\"".to_owned();
    let number = |text: &str| text.trim().parse().ok().filter(|core: &usize| *core < 1024);
    let mut cores = Vec::new();
    for part in text.split(',').filter(|part| !part.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = number(first).zip(number(last)).ok_or_else(wrong)?;
        if first > last {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

pub(super) fn store(text: &str) -> Result<Store, String> {
    match text {
        "f16" => Ok(Store::F16),
        "q8_0" => Ok(Store::Q8_0),
        _ => Err("is not one of \"f16\", \"q8_0\"".into()),
    }
}

pub(super) fn isq(text: &str) -> Result<Isq, String> {
    match text {
        "none" => Ok(Isq::None),
        "q4k" => Ok(Isq::Q4k),
        "q5k" => Ok(Isq::Q5k),
        "q6k" => Ok(Isq::Q6k),
        "q8_0" => Ok(Isq::Q8_0),
        _ => Err("is not one of \"none\", \"q4k\", \"q5k\", \"q6k\", \"q8_0\"".into()),
    }
}

pub(super) fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("is not an octal mode such as \"0660\"".into()),
    }
}

pub(super) fn bus(text: &str) -> Result<Bus, String> {
    match text {
        "system" => Ok(Bus::System),
        "session" => Ok(Bus::Session),
        "off" => Ok(Bus::Off),
        address if address.parse::<zbus::Address>().is_ok() => Ok(Bus::Address(address.into())),
        _ => Err("is not \"system\", \"session\", \"off\" or the address of a bus".into()),
    }
}

pub(super) fn log_level(text: &str) -> Result<String, String> {
    tracing_subscriber::EnvFilter::try_new(text)
        .map(|_| text.to_owned())
        .map_err(|error| format!("is not a log filter: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_a_list_of_numbers_and_ranges() {
        for (text, list) in [
            ("", vec![]),
            (" , ", vec![]),
            ("3", vec![3]),
            ("4-7", vec![4, 5, 6, 7]),
            ("0, 2-3 ,2", vec![0, 2, 3, 2]),
            ("5-5", vec![5]),
            ("1023", vec![1023]),
        ] {
            assert_eq!(cores(text), Ok(list), "{text:?}");
        }
        for text in ["all", "-1", "1-", "-", "3-2", "0-1-2", "1024", "0-1024", "0x1", "1;2", "1 2"]
        {
            assert!(cores(text).is_err_and(|wrong| wrong.contains("0,2-3")), "{text:?}");
        }
    }
}
