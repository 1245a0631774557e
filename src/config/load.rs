//! Flags over environment over file over defaults: the one way to [`Settings`].

use std::collections::BTreeMap;
use std::io;

use crate::config::contradictions;
use crate::config::definitions::{DEFINITIONS, Definition, VARIABLE_PREFIX, find};
use crate::config::draft::Draft;
use crate::config::effective::{Effective, Entry};
use crate::config::file::{self, FileContent};
use crate::config::mistake::{Mistake, Source, nearest};
use crate::config::redis_tls;
use crate::config::settings::{Machine, Settings};
use crate::config::value::{Raw, Value};

/// The variable that names the file.
const CONFIG_VARIABLE: &str = "THRONG_CONFIG";
/// Bytes of a secret's file at most.
const KEY_FILE_BYTES_MAX: usize = 4_096;

/// What the command line says about settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServeArgs {
    /// The file (`--config`); `-` is standard input.
    pub config: Option<String>,
    /// The values of each flag, by the setting's key, in the order they were given.
    pub flags: BTreeMap<String, Vec<String>>,
}

/// Works the settings out.
///
/// `environment` may hold anything; only names that begin with `THRONG_` are looked at. `read_file` is asked for the
/// settings file and for those that secrets are in.
///
/// # Errors
/// Every mistake there is: unknown keys, values that cannot be, contradictions.
pub fn load(
    args: &ServeArgs,
    environment: impl Iterator<Item = (String, String)>,
    read_file: impl Fn(&str) -> io::Result<String>,
    machine: &Machine,
) -> Result<(Settings, Effective), Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut variables = read_environment(environment, &mut mistakes);
    let config_variable = variables
        .remove(CONFIG_VARIABLE)
        .filter(|path| !path.is_empty());
    let path = args.config.clone().or(config_variable);
    let mut content = read_content(path.as_deref(), &read_file);
    mistakes.append(&mut content.mistakes);
    let layers = Layers {
        args,
        variables: &variables,
        content: &content,
        path: path.as_deref(),
    };

    let mut draft = Draft::new();
    let mut entries = Vec::with_capacity(DEFINITIONS.len());
    for definition in DEFINITIONS {
        let (value, source) = layers.value(definition, &mut mistakes);
        (definition.apply)(&mut draft, &value);
        entries.push(Entry {
            definition,
            value,
            source,
            worked_out: None,
        });
    }
    draft.settings.shard.rooms = content.rules.iter().map(|at| at.rule.clone()).collect();
    let read = SecretFile {
        key: "admin_key",
        what: "a key",
        path: draft.admin_key_file.clone(),
        given: draft.settings.admin_key.is_some(),
    }
    .read(&read_file, &mut mistakes);
    draft.settings.admin_key = read.or(draft.settings.admin_key);
    let read = SecretFile {
        key: "redis_password",
        what: "a password",
        path: draft.redis_password_file.clone(),
        given: draft.redis_password.is_some(),
    }
    .read(&read_file, &mut mistakes);
    draft.redis_password = read.or(draft.redis_password);
    let mut pem = |key: &str, path: &Option<String>| {
        redis_tls::read(key, path.as_deref(), &read_file, &mut mistakes)
    };
    draft.settings.redis_tls.ca = pem("redis_tls_ca_file", &draft.redis_tls_ca_file);
    draft.settings.redis_tls.certificate = pem("redis_tls_cert_file", &draft.redis_tls_cert_file);
    draft.settings.redis_tls.key = pem("redis_tls_key_file", &draft.redis_tls_key_file);

    mistakes.sort_by_key(line);
    let settings = draft.finish(machine);
    let mut effective = Effective {
        entries,
        rules: settings.shard.rooms.clone(),
        file: path,
    };
    effective.work_out(&settings);
    // Contradictions between values of which some are wrong would only repeat what is said already.
    let wrong: Vec<&str> = effective.wrong_keys(&mistakes);
    mistakes.extend(contradictions::find_all(
        &settings, machine, &effective, &wrong,
    ));
    if mistakes.is_empty() {
        Ok((settings, effective))
    } else {
        Err(mistakes)
    }
}

/// The line of the file that a mistake is in; 0 for those elsewhere.
fn line(mistake: &Mistake) -> usize {
    let line = mistake.place.rsplit_once(':').map(|(_, line)| line.parse());
    line.and_then(Result::ok).unwrap_or_default()
}

/// All that was said, by rank.
struct Layers<'a> {
    args: &'a ServeArgs,
    variables: &'a BTreeMap<String, String>,
    content: &'a FileContent,
    path: Option<&'a str>,
}

impl Layers<'_> {
    /// The value that counts. Every layer is read, so that a mistake in one that is covered is told, too.
    fn value(
        &self,
        definition: &'static Definition,
        mistakes: &mut Vec<Mistake>,
    ) -> (Value, Source) {
        let flag = self.args.flags.get(definition.key).map(|texts| {
            let raw = match &texts[..] {
                [one] => Raw::Text(one.clone()),
                several => Raw::List(several.to_vec()),
            };
            (Source::Flag, definition.flag(), raw)
        });
        let variable = self.variables.get(&definition.variable()).map(|text| {
            (
                Source::Environment,
                definition.variable(),
                Raw::Text(text.clone()),
            )
        });
        let entry = self.content.entries.get(definition.key).map(|(line, raw)| {
            let place = format!("{}:{line}", self.path.unwrap_or_default());
            (Source::File { line: *line }, place, raw.clone())
        });
        let mut counts = None;
        for (source, place, raw) in [flag, variable, entry].into_iter().flatten() {
            match read(definition, &raw) {
                Ok(value) => counts = counts.or(Some((value, source))),
                Err((problem, instead)) => mistakes.push(Mistake {
                    place,
                    problem: match definition.secret {
                        true => format!("{}: not a value that is allowed here", definition.key),
                        false => format!("{}: {problem}", definition.key),
                    },
                    instead,
                }),
            }
        }
        counts.unwrap_or_else(|| (default(definition), Source::Default))
    }
}

fn read(definition: &Definition, raw: &Raw) -> Result<Value, (String, String)> {
    match (definition.word, raw) {
        (Some(word), Raw::Text(text)) if text.trim() == word => Ok(Value::Word),
        (Some(word), _) => {
            let or_word = |(problem, instead)| (problem, format!("{instead}, or \"{word}\""));
            definition.kind.read(raw).map_err(or_word)
        }
        (None, _) => definition.kind.read(raw),
    }
}

/// The default of a definition; a test reads them all.
pub(super) fn default(definition: &Definition) -> Value {
    read(definition, &Raw::Text(definition.default.into()))
        .unwrap_or_else(|_| panic!("the default of {} is not allowed", definition.key))
}

/// The variables that are ours, those that nobody knows told.
fn read_environment(
    environment: impl Iterator<Item = (String, String)>,
    mistakes: &mut Vec<Mistake>,
) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (name, text) in environment.filter(|(name, _)| name.starts_with(VARIABLE_PREFIX)) {
        let key = name[VARIABLE_PREFIX.len()..].to_ascii_lowercase();
        let known = find(&key).is_some_and(|definition| definition.variable() == name);
        if known || name == CONFIG_VARIABLE {
            variables.insert(name, text);
        } else if !is_service_link(&name) {
            let names: Vec<String> = DEFINITIONS.iter().map(Definition::variable).collect();
            let names = names.iter().map(String::as_str).chain([CONFIG_VARIABLE]);
            let instead = match nearest(&name, names) {
                Some(meant) => format!("write {meant}, or unset it"),
                None => "unset it; `throng config` prints all settings".into(),
            };
            mistakes.push(Mistake {
                place: name,
                problem: "there is no such setting".into(),
                instead,
            });
        }
    }
    variables
}

/// Whether Kubernetes sets the variable for a service whose name begins with `throng` (Kubernetes documentation,
/// "Accessing the Service", environment variables): nobody wrote it, so it is nobody's mistake.
fn is_service_link(name: &str) -> bool {
    let port = |text: &str| {
        text.split_once('_')
            .map_or(text, |(number, _)| number)
            .bytes()
            .all(|byte| byte.is_ascii_digit())
    };
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.ends_with("_PORT")
        || name
            .rsplit_once("_PORT_")
            .is_some_and(|(_, rest)| port(rest))
}

fn read_content(path: Option<&str>, read_file: impl Fn(&str) -> io::Result<String>) -> FileContent {
    let Some(path) = path else {
        return FileContent::default();
    };
    match read_file(path) {
        Ok(text) => file::read(path, &text),
        Err(error) => FileContent {
            mistakes: vec![Mistake {
                place: path.into(),
                problem: format!("cannot be read: {error}"),
                instead: "write the path of a readable TOML file, or `-` for standard input".into(),
            }],
            ..FileContent::default()
        },
    }
}

/// A secret that a file may hold.
struct SecretFile {
    /// The setting that it is a value of; the file's own is called the same with `_file`.
    key: &'static str,
    what: &'static str,
    path: Option<String>,
    /// Whether the secret is given itself.
    given: bool,
}

impl SecretFile {
    fn read(
        self,
        read_file: impl Fn(&str) -> io::Result<String>,
        mistakes: &mut Vec<Mistake>,
    ) -> Option<String> {
        let path = self.path.as_deref()?;
        let Self { key, what, .. } = self;
        let definition = find(key)?;
        let mut wrong = |problem: String, instead: String| {
            mistakes.push(Mistake {
                place: format!("{key}_file"),
                problem,
                instead,
            });
            None
        };
        if self.given {
            let problem = format!("{key} is given, too");
            return wrong(problem, "give one of the two".into());
        }
        let text = match read_file(path) {
            Ok(text) if text.len() <= KEY_FILE_BYTES_MAX => text.trim().to_owned(),
            Ok(_) => {
                let instead = format!("put nothing but {what} into it");
                return wrong(format!("{path} is too long for {what}"), instead);
            }
            Err(error) => {
                let problem = format!("{path} cannot be read: {error}");
                return wrong(problem, "write the path of a readable file".into());
            }
        };
        match definition.kind.read(&Raw::Text(text)) {
            Ok(Value::Text(secret)) => Some(secret),
            _ => wrong(
                format!("{path} does not hold {what}"),
                format!("put one of {} into it", definition.kind.range()),
            ),
        }
    }
}
