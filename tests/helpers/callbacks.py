"""Looking into a training, or disturbing it, from inside."""

from gora.training.trainer import GoraTrainer


def call_too(monkeypatch, *callbacks):
    """Have every training call these as well, before gora's own callbacks."""
    init = GoraTrainer.__init__

    def with_callbacks(self, *arguments, **named):
        init(self, *arguments, **named)
        for callback in callbacks:
            self.add_callback(callback)

    monkeypatch.setattr(GoraTrainer, "__init__", with_callbacks)
