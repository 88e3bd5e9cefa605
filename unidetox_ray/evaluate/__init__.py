"""Stand-alone evaluation: the toxicity of any model's text, judged by pinned local scorers.

sources      what an argument names: a model, a file of generations       prompt_sets  what models continue
columns      which columns of a foreign file hold what                    generated    texts of models and of a server
reading      rows of a file, as a stream                                  store        generations as parts on disk
endpoint     texts from an OpenAI-compatible server                       perspective  stored scores of the Perspective API
scorers      scorers by name, path or hub id (`pinned`)                   scoring      scores of the parts, resumable
measured     TP, EMT, mean and share, over all and by domain              paired       tests on paired values
compared     sources against a reference on the prompts that both have    correction   shares corrected for a scorer's errors
by_source    the rows of every source                                     results      results.json
verb         the whole (`request`: what is asked)                         outputs, page, tracked  console, files, MLflow run
"""
