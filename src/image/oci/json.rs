//! JSON that others wrote.

use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads a document. `null` is the same as an absent member, as every other reader of images has it: writers in Go
/// print empty lists and maps as `null`.
///
/// # Errors
/// What is wrong, and in which member.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    drop_nulls(&mut value);
    serde_path_to_error::deserialize(value).map_err(|e| match e.path().to_string().as_str() {
        "." => e.inner().to_string(),
        path => format!("{}: {}", super::manifest::shown(path), e.inner()),
    })
}

/// As deep as the parser allowed.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(members) => {
            members.retain(|_, value| !value.is_null());
            members.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Outer {
        #[serde(default)]
        list: Vec<Outer>,
        #[serde(default)]
        text: String,
    }

    #[test]
    fn null_is_absent_and_an_error_names_the_member() {
        let read = |text: &str| read::<Outer>(text.as_bytes());
        let inner = Outer { list: Vec::new(), text: "x".into() };
        assert_eq!(
            read(r#"{"list":[{"list":null,"text":"x"}],"text":null}"#).unwrap(),
            Outer { list: vec![inner], text: String::new() }
        );
        let wrong = read(r#"{"list":[{"text":"x"},{"text":["x"]}]}"#).unwrap_err();
        assert_eq!(wrong, "list[1].text: invalid type: sequence, expected a string");
        assert!(read("[").unwrap_err().contains("EOF"));
        assert!(read(&"[".repeat(200)).unwrap_err().contains("recursion limit"));
    }
}
