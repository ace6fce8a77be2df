"""2,048 common English words of 4 to 9 letters, by alphabet: the most frequent ones of old books."""

_ALL = """
able about above abroad absence absent absolute absurd accept accepted accident according account acquired across
acted acting action actions active acts actual actually added addition address addressed admit admitted advance
advanced advantage advice affair affairs affected affection afford afraid after afternoon again against ages agree
agreeable agreed alarm alive allow allowed almost alone along aloud already also although always amid among amongst
amount ancient anger angry animal animals announced another answer answered anxiety anxious anybody anyone anything
apart apartment appeal appear appeared appears applied appointed approach arch argument arguments armed arms army
arose around arranged arrival arrived arrow artist ashamed aside asked asking asleep aspect assist assume assumed
assure assured attached attack attempt attend attended attention attitude audience aunt author authority avoid aware
away awful back bade ball band bank bare base battle bear bearing beast beat beautiful beauty became because become
becomes becoming been before began begged begin beginning begun behind behold being belief believe believed bell
belong belonged below beneath benefit bent beside besides best better between beyond bill bird birds birth bitter
black blame blank bless blind blood blow blue board boat bodies body bold book books boots bore born bosom both bottle
bottom bought bound bowed boys brain branches brave bread break breakfast breaking breast breath bridge brief bright
brilliant bring bringing broad broke broken brother brothers brought brown build building built buried burn burning
burst business busy call called calling calls calm came camp cannot capable capital captain cardinal care careful
carefully carriage carried carry carrying cart case cases cast castle catch cats caught cause caused causes cavalry
ceased centre century certain certainly chain chair chamber chance change changed changes chapter character charge
charged charm charming cheek cheeks chest chief chiefly child children choice choose chosen church circle citizens
city civil claim class classes clean clear clearly clever cloak close closed closely cloth clothes cloud clouds coach
coast coat cold colour column columns come comes comfort coming command commanded common companion company compelled
complete composed conceal concern concerned concluded condition conduct confess confused confusion connected conscious
consent consider constant contained contains contempt content continue continued contrary convinced cool corn corner
correct cost cott could couldn counsel count country couple courage course court cousin cover covered creature
creatures credit cried cries crime cross crossed crowd crown cruel crying curiosity curious current custom daily dance
danger dangerous dare dared dark darkness daughter dawn days dead deal dear death decided declared deep deeply defence
defend degree degrees delay delicate delight delighted deliver delivered demand demanded depart departure depend
derived descended descent describe described desert design desire desired despair desperate destroy destroyed detail
details devil devoted didn died differ different difficult dignity dine dined dinner direct directed direction
directly discover displayed disposed distance distant distinct divided divine doctor does doesn dogs doing domestic
done door doors double doubt doubtless down dozen draw drawing drawn dread dreadful dream dreams dress dressed drew
drink drinking drive driven drop dropped drove drunk dull during dust duties duty dying each eager eagerly earlier
early earnest ears earth ease easily east easy edge education effect effects effort efforts eight either elder
electric element eleven else emotion employed empty ended ends enemies enemy energy engaged engineer enjoy enjoyed
enormous enough enter entered entire entirely entrance equal equally escape escaped essential estate even evening
event events ever every everybody evidence evident evidently evil exact exactly example excellent except exception
excited exclaimed excuse execution exercise exist existence expect expected explain explained exposed express
expressed extended extent extreme extremely eyes face faces fact facts fail failed faint fair fairly faith faithful
fall fallen falling false familiar families family famous fancy farther fashion fast fatal fate father fault favor
favour fear feared features feel feeling feelings feet fell fellow fellows felt female fever field fields fifteen
fifty fight fighting figure figures fill filled final finally find finding fine finger fingers finish finished fire
fired firm firmly first fish five fixed flame flat fled flesh flew flight floor flower flowers flung flying follow
followed following follows fond food fool foolish foot force forced forces forehead foreign forest forget forgive
forgot forgotten form formation formed former formerly forms forth fortune forty forward fought found four fourth
francs free freedom freely fresh friend friendly friends from front fruit full fully further future gain gained game
garden gate gates gathered gave gazed general generally generous genius gentle gentleman gentlemen gently genus
gesture gets getting gift girl girls give given gives giving glad glance glanced glass gloom gloomy glorious glory
gods goes going gold golden gone good governor grace gradually grand grass grave gray great greater greatest greatly
green grew grey grief ground group groups grow growing grown guard guess guests guide guilty guns habit habits hair
half hall hand hands handsome hang happen happened happens happiness happy hard hardly harm hast haste hastily hate
hath have haven having head heads health hear heard hearing heart hearts heat heaven heavy height held help helped
hence here hero hers herself hidden hide high higher highest highly hill hills himself history hither hitherto hold
holding holds hollow holy home honest honor honour hope hoped hopes horrible horror horse horses host hotel hour hours
house household houses however huge human humour hundred hung hurried hurt husband idea ideal ideas ignorant image
imagine imagined immediate immense important inclined increase increased indeed induced infinite influence inform
informed inner innocent inquired inside instance instant instantly instead intended intention inter interest interests
interview into invited iron island itself jealous jest join joined journey judge judgment just justice keen keep
keeping kept kill killed kind kindly kindness kinds king kingdom kings kiss kissed kitchen knees knew knight knights
know knowing knowledge known knows labour lack ladies lady laid lake lamp land lands language large larger last late
lately later latter laugh laughed laughing laughter laws lead leading learn learned learning least leave leaves
leaving left legs length less lest letter letters level liberty lies life lifted light lighted lightning like liked
likely likewise line lines lips list listen listened listening little live lived lives living lofty long longer look
looked looking looks loose lord lose loss lost loud love loved lovely lover loves lower luck lying machine made maid
main majesty make makes making male mankind manner manners many marble march mark marked marriage married marry mass
master match material matter matters mean meaning means meant measure meet meeting member members memory mention
mentioned merchant mercy mere merely merry message method middle midst might mighty mild mile miles military mind
minds mine minister minute minutes miserable misery miss mist mistake mistaken mistress modern moment moments money
month months mood moon moral more moreover morning mortal most mother motion mountain mountains mounted mouth move
moved movement moving much murder murmured music must muttered myself mystery name named namely names narrow nation
nations native natural naturally nature near nearer nearly necessary necessity neck need needed needs neither nephew
never news next nice night nights nine noble nobody noise none north nose note notes nothing notice noticed notion
novel number numbers numerous oath obey object objects obliged observe observed obtain obtained obvious occasion
occasions occupied occur occurred offer offered office officer officers official often older once ones only open
opened opening operation opinion opposite order ordered orders ordinary organ origin original other others otherwise
ought ourselves outer outside over page paid pain painful pair palace pale paper papers pardon parents part parties
partly parts party pass passage passed passing passion past path patience pause paused peace peasant peasants peculiar
people perceive perceived perfect perfectly perform perhaps period permitted person personal persons phrase picked
picture pictures piece pieces pity place placed places plain plainly plan plant plants plate play played playing plays
pleasant please pleased pleasure plenty plot pocket poem poet poetry poets point pointed points police political poor
popular port portion position positive possess possessed possible possibly post pounds power powerful powers practical
practice praise pray prayer precious precisely prefer prepared presence present presented presently preserve preserved
pressed pretty prevent previous price pride priest priests prince princess principal principle prison prisoner
prisoners private probable probably proceed proceeded process produce produced profound progress promise promised
proof proper properly property proposed proud prove proved provided public published pulled pure purpose pursued
pushed putting quality quantity quarrel quarter queen question questions quick quickly quiet quietly quite race rage
railway rain raise raised raising rang range rank rapid rapidly rare rate rather reach reached read reader readily
reading ready real reality really rear reason reasons receive received record recovered reduced reference refuse
refused regard regarded regiment regret regular reign related relation relations relative relief religion religious
remain remained remaining remains remark remarked remarks remember removed render rendered repeat repeated replied
reply report represent reproach request require required resist resolved respect rest result results resumed retired
retreat return returned returning reward rich ride riding right ring rise rising risk river road rock rocks rode roll
rolled roof room rooms rose rough round royal ruin rule rules running rush rushed sacred sacrifice safe safety said
sail sailor saint sake same sand sang sank satisfied save saved saying says scarce scarcely scene scheme school
science search season seat seated second secret secure seeing seek seem seemed seems seen sees seized seldom selection
self sell send sending sense sensible sent sentence separate separated series serious seriously servant servants serve
served service setting settled seven several severe shade shadow shaking shall shame shape share sharp shed shield
shining ship ships shock shone shook shop shore short shot should shoulder shoulders shouted show showed showing shown
shows shut sick side sides sigh sight sign signs silence silent silk silver similar simple simply since sing singing
single singular sister sitting situation sixty size skill skin slain slave sleep slept slight slightly slow slowly
small smaller smile smiled smiling smoke smooth snow social society soft softly soil sold soldier soldiers sole solemn
solid some somehow something sometimes somewhat somewhere song sons soon sooner sorrow sorry sort sorts sought soul
souls sound sounds source south sovereign space spare speak speaking spear special species speech speed spend spent
spirit spirits spite splendid spoke spoken spot sprang spread spring square stage stages stairs stand standing stands
star stars start started state stated statement states station stay stayed step stepped steps stern stick still stir
stock stone stones stood stop stopped stories storm story stout straight strange stranger stream street streets
strength stretched strike striking strong stronger strongly struck structure struggle study stupid style subject
subjects succeed succeeded success such sudden suddenly suffer suffered suffering suggested suit suitable summer
superior supper supply support supported suppose supposed sure surely surface surprise surprised suspicion sweet swept
swift sword sympathy system table tail take taken takes taking tale talk talked talking tall task taste taught teach
tear tears teeth tell telling tells temper tender term terms terrible terror than thank thanks that theatre thee their
them then thence theory there therefore these they thick thin thing things think thinking thinks third thirty this
thither those thou though thought thoughts thousand three threw throat through throw thrown thrust thunder thus tide
till time times tired title together told tomb tone tongue took touch touched toward towards tower town trace trade
train travel treat treated tree trees trembling tried triumph troops trouble troubles true truly trust truth trying
turn turned turning turns twelve twenty twice type unable uncle under unhappy uniform universal unknown unless until
unto upon upper used useful useless usual usually utmost utter uttered utterly vague vain valley value varieties
variety various vast verse very vessel victory view views village violence violent virtue visible vision visit visited
voice voices volume voyage wait waited waiting walk walked walking wall walls want wanted wanting wants warm wasn
waste watch watched watching water waters waves ways weak weakness wealth wear weary weather week weeks weight welcome
well went were west what whatever when whence whenever where whether which while whilst whisper whispered white whole
wholly whom whose wicked wide wife wild will willing wilt wind window windows wine wing wings winter wire wisdom wise
wish wished wishes with within without witness woman women wonder wondered wonderful wood wooden word words wore work
worked working works world worn worse worst worth worthy would wouldn wound wounded wretched write writer writing
written wrong wrote yard yards year years yellow yesterday yield young younger your yours yourself youth
"""
ENGLISH = tuple(_ALL.split())
