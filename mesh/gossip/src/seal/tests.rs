use super::*;

fn node(name: &str) -> NodeId {
    NodeId::of_name(name)
}

fn ring(key: &Key) -> Secrets {
    Secrets::new(Some(Keyring::new(key.clone())), "test".to_owned())
}

#[test]
fn what_is_sealed_opens_once() {
    let key = Key::generate().unwrap();
    let mut one = Envelopes::new(ring(&key), node("one"), 1, 10);
    let mut two = Envelopes::new(ring(&key), node("two"), 2, 10);
    let packet = one.seal(b"hello");
    assert_eq!(
        two.open(&packet),
        Ok((node("one"), Bytes::from_static(b"hello")))
    );
    assert_eq!(two.open(&packet), Err(Refusal::Replay));
    // A restart begins a session of its own, whose counters begin again.
    let mut again = Envelopes::new(ring(&key), node("one"), 3, 10);
    assert!(two.open(&again.seal(b"hello")).is_ok());
}

#[test]
fn no_byte_can_be_changed() {
    let key = Key::generate().unwrap();
    let mut one = Envelopes::new(ring(&key), node("one"), 1, 10);
    let mut two = Envelopes::new(ring(&key), node("two"), 2, 10);
    let packet = one.seal(b"hello");
    for index in 0..packet.len() {
        let mut forged = packet.to_vec();
        forged[index] ^= 1;
        assert!(two.open(&forged).is_err(), "byte {index}");
        assert!(two.open(&packet[..index]).is_err(), "cut at {index}");
    }
    // Forgeries leave no trace: the real one still opens.
    assert!(two.open(&packet).is_ok());
}

#[test]
fn another_key_or_cluster_is_refused() {
    let key = Key::generate().unwrap();
    let other = Key::generate().unwrap();
    let mut one = Envelopes::new(ring(&key), node("one"), 1, 10);
    let mut stranger = Envelopes::new(ring(&other), node("two"), 2, 10);
    let packet = one.seal(b"hello");
    assert_eq!(stranger.open(&packet), Err(Refusal::UnknownKey(key.id())));
    let elsewhere = Secrets::new(Some(Keyring::new(key)), "elsewhere".to_owned());
    let mut elsewhere = Envelopes::new(elsewhere, node("two"), 2, 10);
    assert_eq!(elsewhere.open(&packet), Err(Refusal::Decrypt));
    let open = Secrets::new(None, "test".to_owned());
    let mut open = Envelopes::new(open, node("two"), 2, 10);
    assert!(matches!(open.open(&packet), Err(Refusal::UnknownKey(_))));
}

#[test]
fn a_key_is_rotated_without_a_gap() {
    let (old, new) = (Key::generate().unwrap(), Key::generate().unwrap());
    let mut one = Envelopes::new(ring(&old), node("one"), 1, 10);
    let mut two = Envelopes::new(ring(&old), node("two"), 2, 10);
    assert!(two.open(&one.seal(b"old")).is_ok());
    for side in [&mut one, &mut two] {
        side.change_ring(|ring| ring.install(new.clone())).unwrap();
    }
    one.change_ring(|ring| ring.use_key(new.id())).unwrap();
    assert!(two.open(&one.seal(b"new")).is_ok());
    assert!(one.open(&two.seal(b"old still")).is_ok());
    two.change_ring(|ring| ring.use_key(new.id())).unwrap();
    let late = two.seal(b"new");
    one.change_ring(|ring| ring.remove(old.id())).unwrap();
    assert!(one.open(&late).is_ok());
}

#[test]
fn the_window_slides() {
    let mut window = Window::default();
    assert!(!window.admit(0));
    assert!(window.admit(5));
    assert!(window.admit(3), "late ones are let in");
    assert!(!window.admit(3));
    assert!(window.admit(2000));
    assert!(!window.admit(5), "too old to tell");
    assert!(window.admit(1999));
    assert!(window.admit(977));
    assert!(!window.admit(976));
    assert!(window.admit(u64::MAX));
    assert!(!window.admit(u64::MAX));
    assert!(!window.admit(2001));
    assert!(window.admit(u64::MAX - 1000));
}

#[test]
fn sessions_take_bounded_room() {
    let key = Key::generate().unwrap();
    let mut two = Envelopes::new(ring(&key), node("two"), 2, 10);
    for session in 0..1000 {
        let name = format!("n{}", session % 100);
        let mut sender = Envelopes::new(ring(&key), node(&name), session, 10);
        assert!(two.open(&sender.seal(b"x")).is_ok());
    }
    assert!(two.sessions.len() <= 20, "{}", two.sessions.len());
}
