//! The query string of a request. Every parameter has to be taken: one that nobody took is a mistake of the caller,
//! who would otherwise get an answer to another question.

use std::collections::BTreeMap;

use super::QueryError;

/// Parameters that were not taken yet.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    values: BTreeMap<String, Vec<String>>,
}

impl Parameters {
    pub(super) fn parse(query: Option<&str>) -> Result<Parameters, QueryError> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = percent_decode(name)?;
            let value = percent_decode(value)?;
            // An empty value is a field left empty, not a wish for rows without one.
            if !value.is_empty() {
                values.entry(name).or_default().push(value);
            }
        }
        Ok(Parameters { values })
    }

    /// All values of a parameter that may be given several times.
    pub(super) fn all(&mut self, name: &str) -> Vec<String> {
        self.values.remove(name).unwrap_or_default()
    }

    /// The value of a parameter.
    pub(super) fn one(&mut self, name: &'static str) -> Result<Option<String>, QueryError> {
        let mut values = self.all(name);
        if values.len() > 1 {
            return Err(QueryError::invalid(name, "is given more than once"));
        }
        Ok(values.pop())
    }

    /// A whole number, brought between `least` and `most`.
    pub(super) fn number(&mut self, name: &'static str, least: i64, most: i64) -> Result<Option<i64>, QueryError> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let number: i64 = text
            .parse()
            .map_err(|_| QueryError::invalid(name, "is not a whole number"))?;
        Ok(Some(number.clamp(least, most)))
    }

    /// No further parameters are known.
    pub(super) fn finish(self, known: &str) -> Result<(), QueryError> {
        match self.values.into_keys().next() {
            None => Ok(()),
            Some(name) => Err(QueryError::invalid(
                &name,
                &format!("is not known here; known are {known}"),
            )),
        }
    }
}

/// `%41` and `+` as browsers and programs write them.
pub(super) fn percent_decode(text: &str) -> Result<String, QueryError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                    return Err(QueryError::invalid(text, "is not percent-encoded"));
                };
                (high * 16 + low) as u8
            }
            other => other,
        });
    }
    let text = String::from_utf8(bytes).map_err(|_| QueryError::invalid(text, "is not UTF-8"))?;
    if text.contains('\0') {
        return Err(QueryError::invalid("a parameter", "contains NUL"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_and_may_come_several_times() {
        let mut parameters = Parameters::parse(Some("runtime=e2b&runtime=vm%32&q=a+b%20%C3%A9&x=")).unwrap();
        assert_eq!(parameters.all("runtime"), ["e2b", "vm2"]);
        assert_eq!(parameters.one("q").unwrap().as_deref(), Some("a b é"));
        parameters.finish("nothing").unwrap();
    }

    #[test]
    fn what_nobody_took_and_what_cannot_be_read_is_an_error() {
        let unknown = Parameters::parse(Some("runtim=e2b")).unwrap();
        assert!(unknown.finish("runtime").unwrap_err().to_string().contains("runtim "));
        for broken in ["a=%4", "a=%zz", "a=%ff", "a=%00"] {
            assert!(Parameters::parse(Some(broken)).is_err(), "{broken}");
        }
        let mut twice = Parameters::parse(Some("limit=1&limit=2")).unwrap();
        assert!(twice.number("limit", 1, 10).is_err());
    }
}
