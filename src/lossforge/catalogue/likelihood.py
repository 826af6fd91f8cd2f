"""Negative log-likelihoods and divergences of distributions."""

import lossforge as lf


@lf.loss(wrt=("mean", "log_variance"))
def gaussian_nll(mean, log_variance, true):
    """The negative log-likelihood of a normal distribution whose variance is predicted too.

        (s + (true − mean)² exp(−s)) / 2, s = log_variance; the constant log(2π)/2 is left out

    Shapes: mean, log_variance and true of one shape, any; one loss for each entry. Both predictions have a
    gradient.
    Domain: real numbers.
    Source: Nix & Weigend, *Estimating the mean and variance of the target probability distribution* (1994);
    Kendall & Gal, *What uncertainties do we need in Bayesian deep learning for computer vision?* (2017).
    """
    return 0.5 * (log_variance + (true - mean) ** 2 * lf.exp(-log_variance))


@lf.loss(wrt=("location", "log_scale"))
def laplace_nll(location, log_scale, true):
    """The negative log-likelihood of a Laplace distribution whose scale is predicted too.

        s + |true − location| exp(−s), s = log_scale; the constant log 2 is left out

    Shapes: location, log_scale and true of one shape, any; one loss for each entry. Both predictions have a
    gradient.
    Domain: real numbers.
    Source: Kendall & Gal, *What uncertainties do we need in Bayesian deep learning for computer vision?*
    (2017).
    """
    return log_scale + lf.abs(true - location) * lf.exp(-log_scale)


@lf.loss(wrt="log_rate")
def poisson_nll(log_rate, count):
    """The negative log-likelihood of a count, from the logarithm of its rate.

        exp(log_rate) − count · log_rate; the constant log(count!) is left out

    Shapes: log_rate and count of one shape, any; one loss for each entry.
    Domain: log_rate real, count ≥ 0.
    Source: McCullagh & Nelder, *Generalized Linear Models* (1989), chapter 6.
    """
    return lf.exp(log_rate) - count * log_rate


@lf.loss("batch class *space, batch class *space -> batch *space")
def kl_divergence(logits, true):
    """The Kullback–Leibler divergence of the predicted distribution from the true one.

        Σ_class t (log t − log softmax(logits)), where 0 log 0 is 0

    Shapes: logits and true (batch, class, *space); one loss for each (batch, *space).
    Domain: logits real; true ≥ 0 with sum 1 along class.
    Source: Kullback & Leibler, *On information and sufficiency* (1951).
    """
    return lf.sum(lf.xlogy(true, true) - true * lf.log_softmax(logits, "class"), "class")


__all__ = ["gaussian_nll", "kl_divergence", "laplace_nll", "poisson_nll"]
