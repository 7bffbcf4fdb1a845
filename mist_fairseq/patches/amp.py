"""fairseq's ``--amp``."""

from fairseq.optim.amp_optimizer import AMPOptimizer

from mist_fairseq.patches import replaces


@replaces(AMPOptimizer, "step")
def _step(step, self):
    self.scaler.step(self.optimizer)  # the one whose gradients clip_grad_norm has divided by the scale
    self.scaler.update()
