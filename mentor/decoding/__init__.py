"""The pieces of sampling: settings, guidance, filters, draws, and the acceptance of drafts."""
