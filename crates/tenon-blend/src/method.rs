//! The methods, their parameters and what they take.
//!
//! Formulas, with `x` the weights of the models, `b` the base's, `d = x - b`:
//!
//! | method | result |
//! | --- | --- |
//! | linear | `Σ w x`, divided by `Σ w` unless `normalize: false` (Wortsman et al. 2022) |
//! | slerp | on the arc from `b` to `x`, `t` of the way; a straight line where they are all but parallel |
//! | nuslerp | the same between two models, or between their differences from the base |
//! | task_arithmetic | `b + λ Σ w d` (Ilharco et al. 2022) |
//! | ties | as above over the largest `density` of each `d`, where its sign is the majority's, divided by the weights that took part (Yadav et al. 2023) |
//! | della, della_linear | as dare, an element of a row the likelier the larger it is there (Deep et al. 2024) |
//! | dare_linear, dare_ties | `density` of each `d`, drawn at random, scaled so that `Σ \|d\|` stays (Yu et al. 2023) |
//! | breadcrumbs, breadcrumbs_ties | each `d` without its smallest, and without its `gamma` largest (Davari and Belilovsky 2023) |
//! | model_stock | between the base and the mean, by the angle between the `d` (Jang et al. 2024) |
//! | multislerp | the mean on the sphere of the `x`, or of their `d`, in the tangent space at their weighted sum |
//! | karcher | the mean on the sphere of the `x`, found by steps, times the mean of their norms |
//! | ram, ramplus_tl | `b + Σ d / n` over the `n` of the `\|d\| > epsilon`; where there is one alone, times `1 + r min(shared / alone, alpha)` (2026) |
//! | sce | the `d` where they vary most, where their sign is the majority's, weighted by their squares (Wan et al. 2024) |
//! | nearswap | towards `x` where it is near `b`: `min(1, t / \|d\|)` of the way |
//! | passthrough | `x`, or `scale x` |

/// How whole models are merged with one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named as the configuration names them
pub enum Method {
    Linear,
    Slerp,
    NuSlerp,
    TaskArithmetic,
    Ties,
    DareLinear,
    DareTies,
    Breadcrumbs,
    BreadcrumbsTies,
    Della,
    DellaLinear,
    ModelStock,
    MultiSlerp,
    Karcher,
    Sce,
    Ram,
    RamPlusTl,
    NearSwap,
    Passthrough,
}

/// Whether a method has a base model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base {
    /// It must be there.
    Needed,
    /// It may be there.
    Optional,
    /// It is a model like the others.
    Ignored,
}

/// Which elements of a difference a method keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparsity {
    /// All.
    All,
    /// Those of the largest magnitude.
    Largest,
    /// Those drawn at random.
    Random,
    /// Those neither smallest nor largest.
    Middle,
}

impl Method {
    /// All, in the order in which they are listed to people.
    pub const ALL: [Method; 19] = [
        Method::Linear,
        Method::Slerp,
        Method::NuSlerp,
        Method::TaskArithmetic,
        Method::Ties,
        Method::DareLinear,
        Method::DareTies,
        Method::Breadcrumbs,
        Method::BreadcrumbsTies,
        Method::Della,
        Method::DellaLinear,
        Method::ModelStock,
        Method::MultiSlerp,
        Method::Karcher,
        Method::Sce,
        Method::Ram,
        Method::RamPlusTl,
        Method::NearSwap,
        Method::Passthrough,
    ];

    /// Its name in a configuration.
    pub fn name(self) -> &'static str {
        match self {
            Method::Linear => "linear",
            Method::Slerp => "slerp",
            Method::NuSlerp => "nuslerp",
            Method::TaskArithmetic => "task_arithmetic",
            Method::Ties => "ties",
            Method::DareLinear => "dare_linear",
            Method::DareTies => "dare_ties",
            Method::Breadcrumbs => "breadcrumbs",
            Method::BreadcrumbsTies => "breadcrumbs_ties",
            Method::Della => "della",
            Method::DellaLinear => "della_linear",
            Method::ModelStock => "model_stock",
            Method::MultiSlerp => "multislerp",
            Method::Karcher => "karcher",
            Method::Sce => "sce",
            Method::Ram => "ram",
            Method::RamPlusTl => "ramplus_tl",
            Method::NearSwap => "nearswap",
            Method::Passthrough => "passthrough",
        }
    }

    /// The method by this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|method| method.name() == name)
    }

    pub(crate) fn base(self) -> Base {
        match self {
            Method::Linear | Method::Passthrough | Method::Karcher => Base::Ignored,
            Method::NuSlerp | Method::MultiSlerp => Base::Optional,
            _ => Base::Needed,
        }
    }

    /// Parameters that it reads.
    pub(crate) fn parameters(self) -> &'static [&'static str] {
        match self {
            Method::Linear => &["weight", "normalize"],
            Method::Slerp | Method::NearSwap => &["t"],
            Method::NuSlerp => &["weight", "nuslerp_flatten", "nuslerp_row_wise"],
            Method::ModelStock => &["filter_wise"],
            Method::MultiSlerp => &["weight", "normalize_weights", "eps"],
            Method::Karcher => &["max_iter", "tol"],
            Method::Sce => &["select_topk", "int8_mask"],
            Method::Ram => &["epsilon"],
            Method::RamPlusTl => &["epsilon", "r", "alpha"],
            Method::Della | Method::DellaLinear => {
                &["weight", "density", "epsilon", "normalize", "rescale", "lambda", "int8_mask"]
            }
            Method::Passthrough => &["scale"],
            Method::Breadcrumbs | Method::BreadcrumbsTies => {
                &["weight", "density", "gamma", "normalize", "rescale", "lambda", "int8_mask"]
            }
            _ => &["weight", "density", "normalize", "rescale", "lambda", "int8_mask"],
        }
    }

    pub(crate) fn sparsity(self) -> Sparsity {
        match self {
            Method::Ties => Sparsity::Largest,
            Method::DareLinear | Method::DareTies | Method::Della | Method::DellaLinear => Sparsity::Random,
            Method::Breadcrumbs | Method::BreadcrumbsTies => Sparsity::Middle,
            _ => Sparsity::All,
        }
    }

    /// Whether differences against the majority's sign are left out.
    pub(crate) fn has_consensus(self) -> bool {
        matches!(self, Method::Ties | Method::DareTies | Method::BreadcrumbsTies | Method::Della)
    }

    /// What `normalize` is by default.
    pub(crate) fn normalizes(self) -> bool {
        matches!(self, Method::Linear | Method::Ties | Method::Della)
    }

    /// What `rescale` is by default.
    pub(crate) fn rescales(self) -> bool {
        matches!(self, Method::DareLinear | Method::DareTies | Method::Della | Method::DellaLinear)
    }

    /// Whether a tensor that one model alone has is passed on.
    pub(crate) fn passes_singletons(self) -> bool {
        matches!(self, Method::Slerp | Method::NuSlerp)
    }
}
