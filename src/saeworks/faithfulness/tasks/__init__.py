"""Everything that runs in Inspect: tasks, judges, the embedded model as a provider, and reading Inspect's logs back."""
