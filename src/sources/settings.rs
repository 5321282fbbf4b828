//! How models are downloaded and where they are cached.

use std::path::PathBuf;

/// How models are downloaded and where they are cached.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The cache folder of the demo model, and of models from registries in its folder `registry`.
    pub cache: PathBuf,
    /// The cache folder of hub repositories, in the layout that Hugging Face's own tools share.
    pub hub_cache: PathBuf,
    /// The hub's address, without a slash at the end.
    pub hub_endpoint: String,
    /// The address of Ollama's registry, without a slash at the end.
    pub ollama_endpoint: String,
    /// Sent to the hub for repositories that are not public. A secret: never printed.
    pub hub_token: Option<Token>,
    /// Never use the network, only the caches.
    pub offline: bool,
    /// Draw progress bars on standard error; otherwise progress is logged in lines.
    pub progress_bar: bool,
}

/// A secret that is redacted in logs and debug output.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Settings {
    /// Reads the settings through `variable`, which looks up an environment variable.
    ///
    /// | variable | meaning |
    /// |---|---|
    /// | `XDG_CACHE_HOME` | the demo model and models from registries are cached in its folder `microgranite` (default `~/.cache`) |
    /// | `HF_HUB_CACHE`, `HF_HOME` | the hub's cache, or the folder that holds it as `hub` (default `~/.cache/huggingface`) |
    /// | `HF_ENDPOINT` | the hub's address (default `https://huggingface.co`) |
    /// | `HF_TOKEN` | the hub's token (default: the file `token` in `HF_HOME`, where `hf auth login` keeps it) |
    /// | `OLLAMA_REGISTRY` | the address of Ollama's registry (default `https://registry.ollama.ai`) |
    /// | `HF_HUB_OFFLINE` | `1`, `true`, `yes` or `on`: never use the network |
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>, progress_bar: bool) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        // Without a home folder the caches go to the temporary folder, which every process may write.
        let home = set("HOME").map_or_else(std::env::temp_dir, PathBuf::from);
        let caches = set("XDG_CACHE_HOME").map_or_else(|| home.join(".cache"), PathBuf::from);
        let hub_home = set("HF_HOME").map_or_else(|| caches.join("huggingface"), PathBuf::from);
        let token =
            set("HF_TOKEN").or_else(|| std::fs::read_to_string(hub_home.join("token")).ok());
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".into());
        let ollama = set("OLLAMA_REGISTRY");
        let ollama = ollama.unwrap_or_else(|| "https://registry.ollama.ai".into());
        let offline = set("HF_HUB_OFFLINE").unwrap_or_default().to_lowercase();
        Self {
            cache: caches.join("microgranite"),
            hub_cache: set("HF_HUB_CACHE").map_or_else(|| hub_home.join("hub"), PathBuf::from),
            hub_endpoint: endpoint.trim_end_matches('/').into(),
            ollama_endpoint: ollama.trim_end_matches('/').into(),
            hub_token: token
                .map(|t| t.trim().to_owned())
                .filter(|t| !t.is_empty())
                .map(Token),
            offline: matches!(offline.as_str(), "1" | "true" | "yes" | "on"),
            progress_bar,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Settings {
        let lookup = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| value.to_string())
        };
        Settings::from_variables(lookup, false)
    }

    #[test]
    fn the_home_folder_is_the_default_for_every_cache() {
        let settings = settings(&[("HOME", "/nowhere/me"), ("HF_TOKEN", "")]);
        assert_eq!(
            settings.cache,
            PathBuf::from("/nowhere/me/.cache/microgranite")
        );
        assert_eq!(
            settings.hub_cache,
            PathBuf::from("/nowhere/me/.cache/huggingface/hub")
        );
        assert_eq!(settings.hub_endpoint, "https://huggingface.co");
        assert_eq!(settings.ollama_endpoint, "https://registry.ollama.ai");
        assert_eq!(settings.hub_token, None);
        assert!(!settings.offline);
    }

    #[test]
    fn the_variables_of_hugging_face_are_honoured() {
        let settings = settings(&[
            ("HF_HOME", "/h"),
            ("HF_ENDPOINT", "http://mirror/"),
            ("HF_TOKEN", " secret\n"),
            ("HF_HUB_OFFLINE", "1"),
            ("OLLAMA_REGISTRY", "http://other/"),
        ]);
        assert_eq!(settings.hub_cache, PathBuf::from("/h/hub"));
        assert_eq!(settings.hub_endpoint, "http://mirror");
        assert_eq!(settings.ollama_endpoint, "http://other");
        assert_eq!(settings.hub_token, Some(Token("secret".into())));
        assert!(settings.offline);
        assert!(!format!("{settings:?}").contains("secret"));
    }
}
