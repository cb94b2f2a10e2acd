use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn a_key_is_read_in_both_spellings() {
    let key = Key::generate().unwrap();
    assert_eq!(key.reveal().parse::<Key>().unwrap(), key);
    let hex: String = key
        .bytes()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    assert_eq!(hex.parse::<Key>().unwrap(), key);
}

#[test]
fn a_wrong_line_is_named_with_the_remedy() {
    let good = Key::generate().unwrap().reveal();
    let text = format!("# primary\n{good} # of May\n\nnonsense\n");
    let error = Keyring::parse(&text).unwrap_err();
    assert_eq!(error.to_string(), "line 4");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("portolan keygen"), "{cause}");
    assert!(matches!(Keyring::parse("# none\n"), Err(KeyError::Empty)));
    let zero = format!("{}\n", "0".repeat(64));
    assert!(matches!(
        Keyring::parse(&zero),
        Err(KeyError::Line { line: 1, .. })
    ));
}

#[test]
fn a_ring_holds_three_and_never_loses_its_primary() {
    let mut ring = Keyring::generate().unwrap();
    let first = ring.list()[0].id;
    assert!(matches!(ring.remove(first), Err(KeyError::Primary(_))));
    let keys: Vec<Key> = (0..3).map(|_| Key::generate().unwrap()).collect();
    ring.install(keys[0].clone()).unwrap();
    ring.install(keys[1].clone()).unwrap();
    assert!(matches!(
        ring.install(keys[0].clone()),
        Err(KeyError::Duplicate(_))
    ));
    assert!(matches!(
        ring.install(keys[2].clone()),
        Err(KeyError::TooMany)
    ));
    ring.use_key(keys[1].id()).unwrap();
    assert_eq!(ring.list()[0].id, keys[1].id());
    ring.remove(first).unwrap();
    assert!(matches!(ring.use_key(first), Err(KeyError::Missing(_))));
}

#[test]
fn changes_are_written_to_the_file_it_came_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    fs::write(&path, Keyring::generate().unwrap().reveal()).unwrap();
    let mut ring = Keyring::load(&path).unwrap();
    let new = Key::generate().unwrap();
    ring.install(new.clone()).unwrap();
    ring.use_key(new.id()).unwrap();
    assert_eq!(Keyring::load(&path).unwrap().list(), ring.list());
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // What cannot be written is not done.
    drop(dir);
    let before = ring.list();
    assert!(ring.remove(before[1].id).is_err());
    assert_eq!(ring.list(), before);
}

#[test]
fn a_key_is_never_printed() {
    let key = Key::generate().unwrap();
    let ring = Keyring::new(key.clone());
    let shown = format!("{ring:?}{key:?}");
    assert!(!shown.contains(&key.reveal()), "{shown}");
    let raw = format!("{:?}", key.bytes());
    assert!(!shown.contains(&raw), "{shown}");
}

#[test]
fn a_key_id_is_read_as_it_is_shown() {
    let id = Key::generate().unwrap().id();
    assert_eq!(id.to_string().parse::<KeyId>().unwrap(), id);
    assert!("12345".parse::<KeyId>().is_err());
}
