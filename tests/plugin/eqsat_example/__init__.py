"""An operator, two rules, a cost model, an extractor and a target with an engine, as a third party adds them."""
