//! Documents that the tests sign with openssl and their own authority, in the forms that AWS uses or might use.
use super::*;
use std::process::{Command, Stdio};

const DOCUMENT: &str = "{\n  \"accountId\" : \"123456789012\",\n  \"instanceId\" : \"i-0123456789abcdef0\",\n  \"region\" : \"us-west-2\"\n}";

struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    fn new() -> Self {
        let authority = Self { dir: tempfile::tempdir().unwrap() };
        authority.openssl(
            &[
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-subj",
                "/CN=test",
                "-days",
                "2",
                "-keyout",
                "key.pem",
                "-out",
                "certificate.pem",
            ],
            "",
        );
        authority
    }

    fn openssl(&self, arguments: &[&str], input: &str) -> Vec<u8> {
        use std::io::Write as _;
        let mut child = Command::new("openssl")
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl can be run");
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "openssl {arguments:?}");
        output.stdout
    }

    /// As the metadata service gives it: lines of base64.
    fn sign(&self, document: &str, more: &[&str]) -> String {
        let plain = [
            "cms",
            "-sign",
            "-binary",
            "-nocerts",
            "-outform",
            "DER",
            "-signer",
            "certificate.pem",
            "-inkey",
            "key.pem",
        ];
        let text = STANDARD.encode(self.openssl(&[&plain, more].concat(), document));
        text.as_bytes().chunks(64).map(|line| format!("{}\n", std::str::from_utf8(line).unwrap())).collect()
    }

    fn certificates(&self) -> Certificates {
        Certificates::load(&self.dir.path().join("certificate.pem")).unwrap()
    }
}

#[test]
fn what_the_authority_signed_is_believed() {
    let authority = Authority::new();
    let certificates = authority.certificates();
    let good = Document { instance_id: "i-0123456789abcdef0".to_owned(), region: "us-west-2".to_owned() };
    // In DER; in BER with open lengths, as AWS does; without attributes; with the certificate, which is not looked at.
    for form in [&["-nodetach"][..], &["-nodetach", "-stream", "-indef"], &["-nodetach", "-noattr"]] {
        let signed = authority.sign(DOCUMENT, form);
        assert_eq!(certificates.verify(&signed, None), Ok(good.clone()), "{form:?}");
        assert_eq!(certificates.verify(&signed, Some("{}")), Ok(good.clone()), "what is within counts");
    }
    let detached = authority.sign(DOCUMENT, &[]);
    assert_eq!(certificates.verify(&detached, Some(DOCUMENT)), Ok(good));
    assert!(certificates.verify(&detached, None).is_err() && certificates.verify(&detached, Some("{}")).is_err());
}

#[test]
fn what_is_forged_is_not() {
    let (authority, other) = (Authority::new(), Authority::new());
    let certificates = authority.certificates();
    let forged = |signed: &str, from: &str, to: &str| {
        let bytes = STANDARD.decode(signed.replace('\n', "")).unwrap();
        let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).unwrap();
        let mut bytes = bytes;
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        STANDARD.encode(bytes)
    };
    for form in [&["-nodetach"][..], &["-nodetach", "-stream", "-indef"], &["-nodetach", "-noattr"]] {
        let signed = authority.sign(DOCUMENT, form);
        assert!(certificates.verify(&forged(&signed, "i-0123", "i-9999"), None).is_err(), "{form:?}");
        assert!(certificates.verify(&other.sign(DOCUMENT, form), None).is_err(), "signed by somebody else");
    }
    // SHA-1, a document without an instance, and no document at all.
    assert!(certificates.verify(&authority.sign(DOCUMENT, &["-nodetach", "-md", "sha1"]), None).is_err());
    assert!(certificates.verify(&authority.sign("{}", &["-nodetach"]), None).is_err());
    for nonsense in ["", "AAAA", "%", &"A".repeat(20_000), &STANDARD.encode(DOCUMENT)] {
        assert!(certificates.verify(nonsense, None).is_err());
    }
    // No byte of it can be lost without being noticed, and none makes us stumble.
    let whole =
        STANDARD.decode(authority.sign(DOCUMENT, &["-nodetach", "-stream", "-indef"]).replace('\n', "")).unwrap();
    for length in 0..whole.len() {
        assert!(certificates.verify(&STANDARD.encode(&whole[..length]), None).is_err(), "cut to {length}");
    }
}

#[test]
fn awss_own_certificates_are_there() {
    assert!(Certificates::of_aws().keys.len() >= 10);
    assert!(Certificates::load(Path::new("/nonexistent")).unwrap_err().contains("/nonexistent"));
}
