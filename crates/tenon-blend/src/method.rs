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
//! | dare_linear, dare_ties | `density` of each `d`, drawn at random, scaled so that `Σ \|d\|` stays (Yu et al. 2023) |
//! | breadcrumbs, breadcrumbs_ties | each `d` without its smallest, and without its `gamma` largest (Davari and Belilovsky 2023) |
//! | model_stock | between the base and the mean, by the angle between the `d` (Jang et al. 2024) |
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
    ModelStock,
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
    pub const ALL: [Method; 12] = [
        Method::Linear,
        Method::Slerp,
        Method::NuSlerp,
        Method::TaskArithmetic,
        Method::Ties,
        Method::DareLinear,
        Method::DareTies,
        Method::Breadcrumbs,
        Method::BreadcrumbsTies,
        Method::ModelStock,
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
            Method::ModelStock => "model_stock",
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
            Method::Linear | Method::Passthrough => Base::Ignored,
            Method::NuSlerp => Base::Optional,
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
            Method::DareLinear | Method::DareTies => Sparsity::Random,
            Method::Breadcrumbs | Method::BreadcrumbsTies => Sparsity::Middle,
            _ => Sparsity::All,
        }
    }

    /// Whether differences against the majority's sign are left out.
    pub(crate) fn has_consensus(self) -> bool {
        matches!(self, Method::Ties | Method::DareTies | Method::BreadcrumbsTies)
    }

    /// What `normalize` is by default.
    pub(crate) fn normalizes(self) -> bool {
        matches!(self, Method::Linear | Method::Ties)
    }

    /// What `rescale` is by default.
    pub(crate) fn rescales(self) -> bool {
        matches!(self, Method::DareLinear | Method::DareTies)
    }

    /// Whether a tensor that one model alone has is passed on.
    pub(crate) fn passes_singletons(self) -> bool {
        matches!(self, Method::Slerp | Method::NuSlerp)
    }
}
