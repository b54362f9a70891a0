//! Proxies from the environment, the same for every cloud: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in
//! upper or lower case.
//!
//! Metadata services answer only on their own link, and the loopback of a proxy is not the loopback of this machine.
//! Therefore requests to either never go through a proxy, whatever `NO_PROXY` contains. As in browsers, the entry
//! `<-loopback>` in `NO_PROXY` means that requests to loopback use the proxy nevertheless.

/// Never through a proxy: the addresses of a link's own, among them all metadata services of IPv4 and of OpenStack, and
/// those of AWS.
const LINK_LOCAL: &str = "169.254.0.0/16,fe80::/10,fd00:ec2::/32";
/// Only if the user asks for it.
const LOOPBACK: &str = "localhost,127.0.0.0/8,::1";
/// How the user asks for it.
const WITH_LOOPBACK: &str = "<-loopback>";

/// The proxies to use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Proxies {
    /// For `http://`.
    pub http: Option<String>,
    /// For `https://`.
    pub https: Option<String>,
    /// What is asked for directly: names, addresses and networks, separated by commas.
    pub except: String,
}

impl Proxies {
    /// Those of this process's environment.
    pub fn from_env() -> Self {
        Self::of(&|name| std::env::var(name).ok())
    }

    /// Those that the variables name. What is no HTTP proxy is logged, and not used.
    fn of(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            let set = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
            set(name).or_else(|| set(&name.to_ascii_lowercase()))
        };
        let proxy = |name: &str| {
            let value = get(name)?;
            let url = if value.contains("://") { value } else { format!("http://{value}") };
            let usable =
                reqwest::Url::parse(&url).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
            if !usable {
                // It may have a password in it.
                tracing::warn!("{name} does not name an HTTP proxy, and is not used: write http://host:port");
            }
            usable.then_some(url)
        };
        let all = proxy("ALL_PROXY");
        let given = get("NO_PROXY").unwrap_or_default();
        // Some write a star before the dot, which means the same.
        fn plain(rule: &str) -> &str {
            rule.strip_prefix('*').filter(|rest| rest.starts_with('.')).unwrap_or(rule)
        }
        let mut except: Vec<&str> = given.split(',').map(|r| plain(r.trim())).filter(|rule| !rule.is_empty()).collect();
        let before = except.len();
        except.retain(|rule| *rule != WITH_LOOPBACK);
        if except.len() == before {
            except.push(LOOPBACK);
        }
        except.push(LINK_LOCAL);
        Self {
            http: proxy("HTTP_PROXY").or_else(|| all.clone()),
            https: proxy("HTTPS_PROXY").or(all),
            except: except.join(","),
        }
    }

    /// A client of OpenStack's with these proxies and no others.
    #[cfg(feature = "openstack")]
    pub fn apply(&self, mut client: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        client = client.no_proxy();
        let except = || reqwest::NoProxy::from_string(&self.except);
        let http = self.http.as_ref().and_then(|url| reqwest::Proxy::http(url).ok());
        let https = self.https.as_ref().and_then(|url| reqwest::Proxy::https(url).ok());
        for proxy in [http, https].into_iter().flatten() {
            client = client.proxy(proxy.no_proxy(except()));
        }
        client
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(set: &[(&str, &str)]) -> Proxies {
        Proxies::of(&|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn capitals_small_letters_and_the_one_for_all() {
        let proxies =
            of(&[("https_proxy", "http://a:3128"), ("HTTP_PROXY", "b:3128"), ("http_proxy", "http://c:3128")]);
        assert_eq!((proxies.http.as_deref(), proxies.https.as_deref()), (Some("http://b:3128"), Some("http://a:3128")));
        let proxies = of(&[("all_proxy", "http://a:1"), ("HTTPS_PROXY", ""), ("https_proxy", "https://u:p@b")]);
        assert_eq!((proxies.http.as_deref(), proxies.https.as_deref()), (Some("http://a:1"), Some("https://u:p@b")));
        assert_eq!(of(&[("HTTPS_PROXY", "socks5://a:1080")]).https, None);
        assert_eq!((of(&[]).http, of(&[]).https), (None, None));
    }

    #[test]
    fn link_and_loopback_are_asked_directly_unless_loopback_is_asked_for() {
        assert_eq!(of(&[]).except, format!("{LOOPBACK},{LINK_LOCAL}"));
        assert_eq!(
            of(&[("no_proxy", "a.org, 10.0.0.0/8")]).except,
            format!("a.org,10.0.0.0/8,{LOOPBACK},{LINK_LOCAL}")
        );
        assert_eq!(of(&[("NO_PROXY", "*.a.org,<-loopback>")]).except, format!(".a.org,{LINK_LOCAL}"));
    }
}
