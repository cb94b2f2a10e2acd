use super::*;

/// An attribute as the kernel writes it, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((value.len() + 4) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn request(length: u32) -> Vec<u8> {
    let mut header = length.to_ne_bytes().to_vec();
    header.resize(HEADER, 0);
    header
}

fn answer(code: i32, rest: &[u8]) -> Vec<u8> {
    let mut bytes = code.to_ne_bytes().to_vec();
    bytes.extend(rest);
    bytes
}

#[test]
fn zero_is_an_acknowledgement() {
    assert!(refusal(&answer(0, &request(16))).is_none());
    assert!(refusal_of_dump(&answer(0, &[])).is_none());
    assert!(refusal(&[]).is_none());
}

#[test]
fn a_refusal_is_told_in_the_kernels_words() {
    let mut rest = request(20);
    rest.extend([1, 2, 3, 4]);
    rest.extend(attribute(2, &[9; 4]));
    rest.extend(attribute(ATTR_MESSAGE, b"Unknown device type\0"));
    let error = refusal(&answer(-95, &rest)).unwrap();
    assert_eq!(error.errno(), Some(Errno::OPNOTSUPP));
    let text = error.to_string();
    assert!(
        text.contains("not supported") && text.ends_with(": Unknown device type"),
        "{text}"
    );
}

#[test]
fn a_refusal_without_words_is_one_too() {
    let error = refusal(&answer(-17, &request(16))).unwrap();
    assert_eq!(error.errno(), Some(Errno::EXIST));
    assert!(error.to_string().starts_with("File exists"));
}

#[test]
fn what_is_cut_off_does_no_harm() {
    let mut rest = request(16);
    rest.extend(attribute(ATTR_MESSAGE, b"whole\0"));
    let whole = answer(-22, &rest);
    for length in 4..whole.len() {
        let error = refusal(&whole[..length]).unwrap();
        assert_eq!(error.errno(), Some(Errno::INVAL), "{length}");
    }
}
